//! The end of a run in a few lines for a terminal.

use std::fmt::Write as _;

use super::{Summary, Trained};

/// Writes a number of bytes as people read it.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (unit, size) in UNITS {
        if count >= size {
            #[expect(clippy::cast_precision_loss, reason = "a size for people")]
            return format!("{:.1} {unit}", count as f64 / size as f64);
        }
    }
    format!("{count} B")
}

/// The result of a run, with the control beside the swarm.
#[must_use]
pub fn to_text(summary: &Summary) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:<11} {:>16} {:>15} {:>10} {:>9} {:>10}",
        "", "validation loss", "bits per byte", "tokens", "seconds", "tokens/s"
    );
    let mut row = |name: &str, trained: &Trained| {
        let _ = writeln!(
            out,
            "{name:<11} {:>11.4} nats {:>15.4} {:>10} {:>9.1} {:>10.0}",
            trained.loss_nats,
            trained.bits_per_byte,
            trained.tokens,
            trained.seconds,
            trained.tokens_per_second()
        );
    };
    row("swarm", &summary.swarm);
    if let Some(control) = &summary.control {
        row("one process", control);
    }
    if let Some(ratio) = summary.speed_ratio {
        let _ = writeln!(out, "swarm speed: {ratio:.2} of one process on the same {} cores", summary.cores);
    }
    write_replicas(&mut out, summary);
    let [received, sent] = summary.traffic.total();
    let traffic = &summary.traffic;
    let _ = writeln!(
        out,
        "bytes moved: {} received, {} sent (activations {}, blobs {}, gossip {}, requests {})",
        bytes(received),
        bytes(sent),
        bytes(traffic.push[1]),
        bytes(traffic.blobs[1]),
        bytes(traffic.gossip[1]),
        bytes(traffic.rpc[1])
    );
    for incident in &summary.incidents {
        let _ = writeln!(out, "incident: {incident}");
    }
    let _ = writeln!(out, "sample: {}{}", summary.prompt, summary.sample.replace('\n', "\n        "));
    let folder = summary.folder.display();
    let _ = writeln!(out, "written: {folder}/report.html, {folder}/summary.json, {folder}/checkpoint/");
    out
}

fn write_replicas(out: &mut String, summary: &Summary) {
    for stage in 0..summary.stages {
        let members: Vec<_> = summary.replicas.iter().filter(|replica| replica.stage == stage).collect();
        let hashes: Vec<_> = members.iter().map(|replica| replica.hash.short()).collect();
        let same = members.iter().all(|replica| replica.agrees);
        let hashes = if same { hashes.first().cloned().unwrap_or_default() } else { hashes.join(" ") };
        let _ = writeln!(out, "stage {stage}: {} replicas, weights {hashes}", members.len());
    }
    let _ = match summary.disagreement() {
        None => writeln!(out, "replicas agree"),
        Some(differing) => writeln!(out, "replicas differ: {differing}"),
    };
}

#[cfg(test)]
mod tests {
    use super::super::tests::example;
    use super::*;

    #[test]
    fn the_text_shows_both_losses_the_replicas_and_the_bytes() {
        let text = to_text(&example());
        for part in [
            "0.9000 nats",
            "one process",
            "0.50 of one process",
            "replicas differ: process 1",
            "16 B received, 20 B sent",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(3 << 30), "3.0 GiB");
    }
}
