//! What all pages share: their look, tables, and how numbers are written.

use std::fmt::Write as _;

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;max-width:780px;margin:2rem auto;padding:0 1rem;color:#1c2127;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}th,td{padding:.25rem .6rem;border-bottom:1px solid #dde1e6;text-align:right}
th:first-child,td:first-child{text-align:left}
svg{width:100%;height:auto}svg text{font-size:12px;fill:#5c6570}
.grid{stroke:#e3e7eb}polyline{fill:none;stroke-width:2}
.s0{stroke:#1f6feb}.s1{stroke:#d9822b}.s2{stroke:#1a7f4b}.s3{stroke:#8250df}.s4{stroke:#b3261e}
.f0{fill:#1f6feb}.f1{fill:#d9822b}.f2{fill:#1a7f4b}.f3{fill:#8250df}.f4{fill:#b3261e}
.theory{stroke-dasharray:5 4}
@media(prefers-color-scheme:dark){body{color:#e6e9ec;background:#14181c}
th,td{border-color:#333b43}.grid{stroke:#2a3138}svg text{fill:#9aa4af}}
";

/// Colors there are; the next series starts over.
pub(crate) const COLORS: usize = 5;

/// Text with the characters that mean something in HTML replaced.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A page with this title and body.
pub(crate) fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{title}</title>\n<style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n{body}</body></html>\n",
        title = escape(title)
    )
}

/// A table: its head and its rows.
pub(crate) fn table(out: &mut String, head: &[&str], rows: &[Vec<String>]) {
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

/// A number with about four digits that count.
pub(crate) fn number(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 1000.0 || value == 0.0 {
        format!("{value:.0}")
    } else if magnitude >= 100.0 {
        format!("{value:.1}")
    } else if magnitude >= 10.0 {
        format!("{value:.2}")
    } else if magnitude >= 0.001 {
        format!("{value:.3}")
    } else {
        format!("{value:.1e}")
    }
}

/// A number of bytes as people read it.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let unit = UNITS.iter().find(|(_, size)| count >= *size);
    let real = crate::measure::statistics::real;
    unit.map_or(format!("{count} B"), |(unit, size)| format!("{:.1} {unit}", real(count) / real(*size)))
}
