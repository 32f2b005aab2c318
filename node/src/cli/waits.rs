//! The waits that are given and not measured, of the protocol and of this program: for people who wonder why something takes a
//! while.

use iota_protocol::RunSpec;
use iota_protocol::pace::{Fixed, fixed};

use crate::push::PushLimits;
use crate::{blobs, mirror, net, push};

/// All of them. What this program adds is about connections and single requests: where nothing has come yet, there is nothing
/// to measure.
pub(super) fn given(spec: &RunSpec) -> Vec<Fixed> {
    let mut all = fixed(spec);
    all.extend(connections());
    all.extend(transfers());
    all.extend(mirrors());
    all
}

fn connections() -> [Fixed; 7] {
    let one = Fixed::given;
    [
        one(
            "listen",
            "for every listener to be up at the start; local, so there is no round trip",
            net::LISTEN_DEADLINE,
        ),
        one(
            "dial",
            "beside a request's own time, for the connection that it may need first; nothing of the peer is known yet",
            net::DIAL_ALLOWANCE,
        ),
        Fixed {
            name: "dial-again",
            doc: "before a bootstrap address that does not answer is dialled again; a back-off, doubled each time",
            least: net::BACKOFF_MIN,
            most: net::BACKOFF_MAX,
        },
        one(
            "connection-idle",
            "for a sign of life on a control connection, which sends one of itself; QUIC has it fixed at the handshake",
            net::QUIC_IDLE,
        ),
        one(
            "data-connection",
            "for a data connection; nothing of the peer is known yet, and another one is asked next",
            blobs::CONNECT,
        ),
        one(
            "data-connection-idle",
            "for a sign of life on a data connection; QUIC has it fixed at the handshake",
            blobs::IDLE,
        ),
        one(
            "gossip-held",
            "a message waits so long for somebody to send it to; the next announcement has overtaken it then",
            net::WAIT_MAX,
        ),
    ]
}

fn transfers() -> [Fixed; 5] {
    let one = Fixed::given;
    let limits = PushLimits::default();
    [
        one(
            "fetch-stalled",
            "for the next byte of a blob before another provider is asked; the whole fetch has a measured deadline",
            blobs::STALL,
        ),
        one(
            "fetch-hedged",
            "before a second provider is asked beside a slow one; that does no harm, whatever the first is like",
            blobs::HEDGE_AFTER,
        ),
        one(
            "push-stalled",
            "for the next byte of a push, as its receiver; the sender has a measured deadline",
            push::STALL,
        ),
        one(
            "push-queued",
            "a push that has come waits so long for room; the sender tries again",
            limits.queue_wait,
        ),
        one(
            "push-answered",
            "a push that has come waits so long for its answer; local, so there is no round trip",
            limits.ack_wait,
        ),
    ]
}

fn mirrors() -> [Fixed; 3] {
    let one = Fixed::given;
    let (least, most) = mirror::BACKOFF;
    [
        one(
            "mirror-connection",
            "for a connection to the mirror; nothing of it is known yet",
            mirror::CONNECT,
        ),
        one(
            "mirror-outage",
            "an outage of the mirror is waited out for so long, and then told; it says nothing of the next",
            mirror::PATIENCE,
        ),
        Fixed {
            name: "mirror-request",
            doc: "before a request to the mirror is sent again; a back-off, doubled each time",
            least,
            most,
        },
    ]
}
