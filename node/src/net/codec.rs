//! The request/response framing `/iota/rpc/1`: `u32 LE length ‖ bytes`, then the end of the stream.
//!
//! The length is checked before anything is allocated, a short frame is an error, and so is a single
//! byte after the frame. The same framing carries the response on the other half of the stream.

use std::io;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::StreamProtocol;
use libp2p::request_response;

use crate::metrics::{NetMetrics, Refusal};

/// Name of the protocol in stream negotiation.
pub(super) const PROTOCOL: StreamProtocol = StreamProtocol::new("/iota/rpc/1");

/// Bytes read at a time, so that a frame takes memory as it arrives and not as it is announced.
const READ_STEP_BYTES: usize = 64 * 1024;

/// Frames of at most `bytes_max` bytes. Counts malformed requests, which libp2p reports to nobody.
#[derive(Debug, Clone)]
pub(super) struct FrameCodec {
    bytes_max: usize,
    metrics: NetMetrics,
}

impl FrameCodec {
    pub(super) fn new(bytes_max: usize, metrics: NetMetrics) -> Self {
        Self { bytes_max, metrics }
    }

    async fn read_frame(&self, io: &mut (impl AsyncRead + Unpin + Send)) -> io::Result<Vec<u8>> {
        let mut prefix = [0; 4];
        io.read_exact(&mut prefix).await?;
        let length = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
        if length > self.bytes_max {
            return Err(invalid(format!("frame of {length} bytes, expected at most {}", self.bytes_max)));
        }
        let mut frame = Vec::new();
        while frame.len() < length {
            let start = frame.len();
            frame.resize(length.min(start + READ_STEP_BYTES), 0);
            io.read_exact(&mut frame[start..]).await?;
        }
        if io.read(&mut [0]).await? != 0 {
            return Err(invalid(format!("bytes after a frame of {length} bytes")));
        }
        Ok(frame)
    }

    async fn write_frame(&self, io: &mut (impl AsyncWrite + Unpin + Send), frame: Vec<u8>) -> io::Result<()> {
        let length = u32::try_from(frame.len())
            .ok()
            .filter(|_| frame.len() <= self.bytes_max)
            .ok_or_else(|| invalid(format!("own frame of {} bytes", frame.len())))?;
        io.write_all(&length.to_le_bytes()).await?;
        io.write_all(&frame).await?;
        io.close().await
    }
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

impl request_response::Codec for FrameCodec {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        self.read_frame(io).await.inspect_err(|_| self.metrics.request_refused(Refusal::Malformed))
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        self.read_frame(io).await
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, request: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        self.write_frame(io, request).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, response: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        self.write_frame(io, response).await
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use futures::io::Cursor;

    use super::*;

    fn codec() -> FrameCodec {
        FrameCodec::new(8, NetMetrics::default())
    }

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        block_on(codec().read_frame(&mut Cursor::new(bytes.to_vec())))
    }

    #[test]
    fn a_frame_survives_the_round_trip() {
        let mut wire = Cursor::new(Vec::new());
        block_on(codec().write_frame(&mut wire, vec![1, 2, 3])).unwrap();
        assert_eq!(wire.get_ref(), &[3, 0, 0, 0, 1, 2, 3]);
        assert_eq!(read(wire.get_ref()).unwrap(), [1, 2, 3]);
    }

    #[test]
    fn an_oversize_length_is_refused_before_the_bytes_are_read() {
        let error = read(&[255, 255, 255, 255]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().contains("expected at most 8"));
    }

    #[test]
    fn short_and_trailing_bytes_are_refused() {
        assert_eq!(read(&[3, 0, 0, 0, 1]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read(&[1, 0, 0, 0, 1, 2]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(read(&[]).is_err());
    }

    #[test]
    fn an_own_frame_over_the_limit_is_not_sent() {
        let mut wire = Cursor::new(Vec::new());
        block_on(codec().write_frame(&mut wire, vec![0; 9])).unwrap_err();
        assert!(wire.get_ref().is_empty());
    }
}
