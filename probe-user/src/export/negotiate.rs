//! Which encoding a scraper wants: the `Accept` header.

/// An encoding of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text, version 0.0.4.
    Text,
    /// `OpenMetrics` text, version 1.0.0.
    OpenMetrics,
    /// Prometheus protobuf, length-delimited; carries native histograms.
    Protobuf,
}

impl Format {
    /// Value of the `Content-Type` header.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
        }
    }

    /// The format that an `Accept` header likes best, the first of equals; text
    /// where it likes none, as scrapers expect.
    pub fn from_accept(accept: &str) -> Self {
        let mut best = (Self::Text, 0.0);
        for range in accept.split(',') {
            if let Some((format, quality)) = parse_range(range)
                && quality > best.1
            {
                best = (format, quality);
            }
        }
        best.0
    }
}

/// Whether a body may be compressed with gzip, by an `Accept-Encoding` header
/// (RFC 9110, section 12.5.3): where the client likes it at least as well as the plain
/// body.
pub fn accepts_gzip(accept_encoding: &str) -> bool {
    let (mut gzip, mut plain, mut any) = (None, None, None);
    for range in accept_encoding.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let coding = parts.next().unwrap_or_default().to_ascii_lowercase();
        let mut quality = Some(1.0);
        for (key, value) in parts.filter_map(|part| part.split_once('=')) {
            if key.trim().eq_ignore_ascii_case("q") {
                quality = parse_quality(value.trim());
            }
        }
        let place = match &*coding {
            "gzip" | "x-gzip" => &mut gzip,
            "identity" => &mut plain,
            "*" => &mut any,
            _ => continue,
        };
        // What cannot be understood is not asked for.
        *place = place.or(Some(quality.unwrap_or(0.0)));
    }
    let gzip = gzip.or(any).unwrap_or(0.0);
    // Without a word about it the plain body will do, but is not preferred.
    gzip > 0.0 && gzip >= plain.unwrap_or(0.0)
}

/// A quality value; `None` for what is none.
fn parse_quality(text: &str) -> Option<f32> {
    text.parse().ok().filter(|q| (0.0..=1.0).contains(q))
}

/// The format of one media range with its quality; `None` where there is no
/// such format.
fn parse_range(range: &str) -> Option<(Format, f32)> {
    let mut parts = range.split(';').map(str::trim);
    let media = parts.next()?.to_ascii_lowercase();
    let mut quality = 1.0;
    let mut version = None;
    let mut proto = None;
    let mut encoding = None;
    for part in parts {
        let Some((key, value)) = part.split_once('=') else {
            continue;
        };
        let value = value.trim().trim_matches('"');
        match key.trim().to_ascii_lowercase().as_str() {
            "q" => quality = parse_quality(value)?,
            "version" => version = Some(value),
            "proto" => proto = Some(value),
            "encoding" => encoding = Some(value),
            _ => {}
        }
    }
    let format = match (media.as_str(), version) {
        ("text/plain", None | Some("0.0.4")) | ("text/*" | "*/*", _) => Format::Text,
        ("application/openmetrics-text", None | Some("1.0.0" | "0.0.1")) => Format::OpenMetrics,
        ("application/vnd.google.protobuf", _)
            if proto == Some("io.prometheus.client.MetricFamily")
                && encoding == Some("delimited") =>
        {
            Format::Protobuf
        }
        _ => return None,
    };
    Some((format, quality))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_scrapers_send() {
        for (accept, format) in [
            ("", Format::Text),
            ("*/*", Format::Text),
            // A browser.
            ("text/html,application/xhtml+xml,*/*;q=0.8", Format::Text),
            // Prometheus 2.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Format::OpenMetrics,
            ),
            // Prometheus 3.
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                Format::OpenMetrics,
            ),
            // Prometheus with native histograms.
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                Format::Protobuf,
            ),
            // VictoriaMetrics.
            ("text/plain;version=0.0.4;q=1,*/*;q=0.1", Format::Text),
        ] {
            assert_eq!(Format::from_accept(accept), format, "{accept}");
        }
    }

    #[test]
    fn quality_decides_and_the_first_of_equals() {
        for (accept, format) in [
            (
                "text/plain;q=0.2, application/openmetrics-text;q=0.9",
                Format::OpenMetrics,
            ),
            (
                "text/plain;q=0.9, application/openmetrics-text;q=0.2",
                Format::Text,
            ),
            (
                "application/openmetrics-text, text/plain",
                Format::OpenMetrics,
            ),
            ("text/plain, application/openmetrics-text", Format::Text),
            ("application/openmetrics-text;q=0", Format::Text),
            ("application/openmetrics-text;q=7", Format::Text),
            ("application/openmetrics-text;q=x", Format::Text),
            (
                "Application/OpenMetrics-Text; Version=\"1.0.0\"",
                Format::OpenMetrics,
            ),
            ("application/openmetrics-text;version=2.0.0", Format::Text),
            ("application/vnd.google.protobuf", Format::Text),
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text",
                Format::Text,
            ),
            (";;,,=;q", Format::Text),
        ] {
            assert_eq!(Format::from_accept(accept), format, "{accept}");
        }
    }

    #[test]
    fn gzip_is_for_who_asks_for_it() {
        for (header, is_accepted) in [
            ("", false),
            // Prometheus, VictoriaMetrics, curl --compressed, a browser.
            ("gzip", true),
            ("gzip, deflate", true),
            ("deflate, gzip, br, zstd", true),
            ("GZIP", true),
            ("x-gzip", true),
            ("identity", false),
            ("deflate, br", false),
            ("gzipped", false),
            ("*", true),
            ("*;q=0", false),
            ("gzip;q=0", false),
            ("gzip; q=0.000, *", false),
            ("gzip;q=0, gzip", false),
            ("gzip;q=0.5", true),
            ("gzip;q=0.5, identity", false),
            ("identity;q=0.5, gzip;q=0.5", true),
            ("identity;q=0.5, *;q=0.7", true),
            ("br;q=1, gzip;q=0.1", true),
            ("gzip;q=x", false),
            ("gzip;q=7", false),
            ("gzip;Q=0", false),
            (",;,=;q,", false),
        ] {
            assert_eq!(accepts_gzip(header), is_accepted, "{header}");
        }
    }
}
