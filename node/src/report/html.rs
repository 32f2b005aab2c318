//! The report as one HTML file that needs nothing else.

use std::fmt::Write as _;

use super::chart::{Series, lines};
use super::text::bytes;
use super::{Summary, Trained};
use crate::up::view::EpochRecord;

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;max-width:780px;margin:2rem auto;padding:0 1rem;color:#1c2127;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}th,td{padding:.25rem .6rem;border-bottom:1px solid #dde1e6;text-align:right}
th:first-child,td:first-child{text-align:left}
pre{background:#f4f6f8;padding:1rem;white-space:pre-wrap}
svg{width:100%;height:auto}svg text{font-size:12px;fill:#5c6570}
.grid{stroke:#e3e7eb}polyline{fill:none;stroke-width:2}.swarm{stroke:#1f6feb}.control{stroke:#d9822b;stroke-dasharray:5 4}
.bad{color:#b3261e;font-weight:600}.good{color:#1a7f4b;font-weight:600}
@media(prefers-color-scheme:dark){body{color:#e6e9ec;background:#14181c}pre{background:#1e242a}
th,td{border-color:#333b43}.grid{stroke:#2a3138}svg text{fill:#9aa4af}}
";

/// Text with the characters that mean something in HTML replaced.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A table: its head and its rows.
fn table(out: &mut String, head: &[&str], rows: &[Vec<String>]) {
    out.push_str("<table><tr>");
    for cell in head {
        let _ = write!(out, "<th>{}</th>", escape(cell));
    }
    out.push_str("</tr>\n");
    for row in rows {
        out.push_str("<tr>");
        for cell in row {
            let _ = write!(out, "<td>{}</td>", escape(cell));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table>\n");
}

/// The whole report.
#[must_use]
pub fn render<'a>(summary: &Summary, epochs: impl Iterator<Item = &'a EpochRecord>) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{name}</title>\n<style>{STYLE}</style></head><body>\n<h1>Run {name}</h1>\n",
        name = escape(&summary.name)
    );
    let _ = writeln!(
        out,
        "<p>{} stages of {} miners, {} parameters, {} epochs in {} mode, {} cores. Run {}.</p>",
        summary.stages,
        summary.miners,
        summary.parameters,
        summary.epochs,
        escape(&summary.mode),
        summary.cores,
        summary.run
    );
    results(&mut out, summary);
    out.push_str("<h2>Training loss</h2>\n");
    let swarm = Series { name: "swarm", class: "swarm", values: &summary.losses.swarm };
    let control = Series { name: "one process", class: "control", values: &summary.losses.control };
    out.push_str(&lines(&[swarm, control], "epoch", "nats per token"));
    replicas(&mut out, summary);
    traffic(&mut out, summary);
    incidents(&mut out, summary);
    let _ = writeln!(
        out,
        "<h2>Sample</h2>\n<pre><b>{}</b>{}</pre>",
        escape(&summary.prompt),
        escape(&summary.sample)
    );
    merges(&mut out, epochs);
    out.push_str("</body></html>\n");
    out
}

fn results(out: &mut String, summary: &Summary) {
    let row = |name: &str, trained: &Trained| {
        vec![
            name.to_owned(),
            format!("{:.4}", trained.loss_nats),
            format!("{:.4}", trained.bits_per_byte),
            trained.tokens.to_string(),
            format!("{:.1}", trained.seconds),
            format!("{:.0}", trained.tokens_per_second()),
        ]
    };
    let mut rows = vec![row("swarm", &summary.swarm)];
    rows.extend(summary.control.as_ref().map(|control| row("one process", control)));
    let head = ["", "validation nats", "bits per byte", "tokens", "seconds", "tokens/s"];
    table(out, &head, &rows);
    if let Some(ratio) = summary.speed_ratio {
        let _ = writeln!(
            out,
            "<p>The swarm trained at {ratio:.2} of the speed of one process on the same cores.</p>"
        );
    }
}

fn replicas(out: &mut String, summary: &Summary) {
    out.push_str("<h2>Replicas</h2>\n");
    let _ = match summary.disagreement() {
        None => writeln!(out, "<p class=\"good\">Replicas agree.</p>"),
        Some(text) => writeln!(out, "<p class=\"bad\">Replicas differ: {}.</p>", escape(&text)),
    };
    let row = |replica: &super::Replica| {
        let (stage, process, version) =
            (replica.stage.to_string(), replica.process.to_string(), replica.version.to_string());
        vec![stage, process, replica.peer.short(), version, replica.hash.short()]
    };
    let rows: Vec<_> = summary.replicas.iter().map(row).collect();
    table(out, &["stage", "process", "peer", "version", "weights"], &rows);
}

fn traffic(out: &mut String, summary: &Summary) {
    out.push_str("<h2>Bytes moved</h2>\n");
    let row = |name: &str, [received, sent]: [u64; 2]| vec![name.to_owned(), bytes(received), bytes(sent)];
    let traffic = &summary.traffic;
    let rows = [
        row("activations and gradients", traffic.push),
        row("blobs", traffic.blobs),
        row("gossip", traffic.gossip),
        row("requests", traffic.rpc),
        row("together", traffic.total()),
    ];
    table(out, &["", "received", "sent"], &rows);
}

fn incidents(out: &mut String, summary: &Summary) {
    if summary.faults.is_empty() && summary.incidents.is_empty() {
        return;
    }
    out.push_str("<h2>Faults</h2>\n<ul>\n");
    for text in summary
        .faults
        .iter()
        .map(|fault| format!("asked for: {fault}"))
        .chain(summary.incidents.iter().cloned())
    {
        let _ = writeln!(out, "<li>{}</li>", escape(&text));
    }
    out.push_str("</ul>\n");
}

fn merges<'a>(out: &mut String, epochs: impl Iterator<Item = &'a EpochRecord>) {
    out.push_str("<h2>Merges</h2>\n");
    let rows: Vec<_> = epochs
        .map(|record| {
            vec![
                (record.epoch + 1).to_string(),
                record.stage.to_string(),
                format!("{:.1}", record.at_seconds),
                format!("{} of {}", record.submitters, record.members),
                record.samples.to_string(),
                format!("{:.2}", record.merge_seconds),
                bytes(record.bytes_fetched),
                record.loss.map(|loss| format!("{loss:.4}")).unwrap_or_default(),
                record.weights.map(|hash| hash.short()).unwrap_or_default(),
            ]
        })
        .collect();
    let head = ["epoch", "stage", "at, s", "replicas", "samples", "merge, s", "fetched", "loss", "weights"];
    table(out, &head, &rows);
}

#[cfg(test)]
mod tests {
    use super::super::tests::example;
    use super::*;

    #[test]
    fn the_report_is_one_file_without_links_and_escapes_text() {
        let html = render(&example(), [].iter());
        assert!(html.contains("once &lt;upon&gt; a time"));
        assert!(html.contains("<svg") && html.contains("class=\"control\""));
        assert!(!html.contains("http") && !html.contains("<script"), "nothing is fetched or run");
        assert_eq!(html.matches("<table>").count(), html.matches("</table>").count());
    }
}
