//! Numbers for people: the values of the tables and how they are written.

use std::cmp::Ordering;

use super::Style;

/// One cell of a table.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A name or address.
    Text(String),
    /// How many.
    Count(u64),
    /// Events a second.
    Rate(f64),
    /// Bytes.
    Bytes(u64),
    /// Bytes a second.
    ByteRate(f64),
    /// A duration in seconds.
    Seconds(f64),
    /// A share, 0 to 1.
    Ratio(f64),
    /// Not known, or not known yet.
    Missing,
}

impl Value {
    /// A duration, or nothing.
    pub fn seconds(seconds: Option<f64>) -> Self {
        seconds.map_or(Self::Missing, Self::Seconds)
    }

    /// `part` of `whole`, missing where there is no whole.
    pub fn ratio(part: u64, whole: u64) -> Self {
        if whole == 0 {
            Self::Missing
        } else {
            Self::Ratio(part as f64 / whole as f64)
        }
    }

    /// The text to show.
    pub fn show(&self, style: Style) -> String {
        match self {
            // A line break in a note must not break the table.
            Self::Text(text) => text.replace(char::is_control, " "),
            Self::Count(count) => thousands(*count),
            Self::Rate(rate) => number(*rate),
            Self::Bytes(n) => bytes(*n as f64),
            Self::ByteRate(rate) => bytes(*rate),
            Self::Seconds(seconds) => duration(*seconds, style),
            Self::Ratio(ratio) => format!("{} %", number(ratio * 100.0)),
            Self::Missing => style.pick("–", "-").to_owned(),
        }
    }

    /// Order for sorting: missing values below all others, text without
    /// regard to case, digits in it by their value.
    pub fn order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => text_order(a, b),
            (Self::Missing, Self::Missing) => Ordering::Equal,
            (Self::Missing, _) => Ordering::Less,
            (_, Self::Missing) => Ordering::Greater,
            (Self::Text(_), _) => Ordering::Less,
            (_, Self::Text(_)) => Ordering::Greater,
            (a, b) => a.number().total_cmp(&b.number()),
        }
    }

    fn number(&self) -> f64 {
        match *self {
            Self::Count(n) | Self::Bytes(n) => n as f64,
            Self::Rate(x) | Self::ByteRate(x) | Self::Seconds(x) | Self::Ratio(x) => x,
            Self::Text(_) | Self::Missing => 0.0,
        }
    }
}

/// Port 80 sorts before port 443.
fn text_order(a: &str, b: &str) -> Ordering {
    match (a.parse::<u64>(), b.parse::<u64>()) {
        (Ok(a), Ok(b)) => a.cmp(&b),
        _ => a.to_lowercase().cmp(&b.to_lowercase()),
    }
}

/// `12345` as `12,345`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Three significant digits; what is not zero does not read as zero.
pub fn number(x: f64) -> String {
    if x == 0.0 || x.is_nan() {
        "0".to_owned()
    } else if x < 0.01 {
        "<0.01".to_owned()
    } else if x < 9.995 {
        format!("{x:.2}")
    } else if x < 99.95 {
        format!("{x:.1}")
    } else {
        thousands(x.round() as u64)
    }
}

/// Bytes in units of 1024.
pub fn bytes(n: f64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut scaled = n;
    let mut unit = 0;
    while scaled >= 999.5 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    let text = if unit == 0 && scaled.fract() == 0.0 {
        format!("{scaled}")
    } else {
        number(scaled)
    };
    format!("{text} {}", UNITS[unit])
}

/// A duration: microseconds up to seconds with three digits, then minutes,
/// hours and days.
pub fn duration(seconds: f64, style: Style) -> String {
    let (days, hours, minutes) = (86_400, 3_600, 60);
    if seconds <= 0.0 || seconds.is_nan() {
        "0 s".to_owned()
    } else if seconds < 999.5e-6 {
        format!("{} {}", number(seconds * 1e6), style.pick("µs", "us"))
    } else if seconds < 0.9995 {
        format!("{} ms", number(seconds * 1e3))
    } else if seconds < 59.95 {
        format!("{} s", number(seconds))
    } else {
        let whole = seconds.round() as u64;
        if whole < hours {
            format!("{}m {}s", whole / minutes, whole % minutes)
        } else if whole < days {
            format!("{}h {}m", whole / hours, whole % hours / minutes)
        } else {
            format!("{}d {}h", whole / days, whole % days / hours)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UTF8: Style = Style {
        color: false,
        unicode: true,
    };

    #[test]
    fn thousands_are_grouped() {
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (1_234_567, "1,234,567"),
            (u64::MAX, "18,446,744,073,709,551,615"),
        ] {
            assert_eq!(thousands(n), text);
        }
    }

    #[test]
    fn numbers_keep_three_digits() {
        for (x, text) in [
            (0.0, "0"),
            (0.001, "<0.01"),
            (0.5, "0.50"),
            (9.994, "9.99"),
            (9.996, "10.0"),
            (99.96, "100"),
            (1234.5, "1,235"),
            (f64::NAN, "0"),
        ] {
            assert_eq!(number(x), text, "{x}");
        }
    }

    #[test]
    fn bytes_change_unit_before_a_fourth_digit() {
        for (n, text) in [
            (0.0, "0 B"),
            (17.0, "17 B"),
            (1023.0, "1.00 KiB"),
            (1536.0, "1.50 KiB"),
            (1024.0 * 1023.0, "1.00 MiB"),
            (5.0 * 1024.0 * 1024.0 * 1024.0, "5.00 GiB"),
            (0.5, "0.50 B"),
        ] {
            assert_eq!(bytes(n), text, "{n}");
        }
    }

    #[test]
    fn durations_have_the_unit_that_fits() {
        for (seconds, text) in [
            (0.0, "0 s"),
            (12.34e-6, "12.3 µs"),
            (999.6e-6, "1.00 ms"),
            (0.05, "50.0 ms"),
            (0.9996, "1.00 s"),
            (59.94, "59.9 s"),
            (59.96, "1m 0s"),
            (3_725.0, "1h 2m"),
            (90_000.0, "1d 1h"),
        ] {
            assert_eq!(duration(seconds, UTF8), text, "{seconds}");
        }
        assert_eq!(duration(12.34e-6, Style::PLAIN), "12.3 us");
    }

    #[test]
    fn values_sort_by_number_and_missing_ones_last_when_descending() {
        let mut values = [
            Value::Seconds(0.2),
            Value::Missing,
            Value::Seconds(3.0),
            Value::Seconds(0.0),
        ];
        values.sort_by(|a, b| b.order(a));
        assert_eq!(
            values,
            [
                Value::Seconds(3.0),
                Value::Seconds(0.2),
                Value::Seconds(0.0),
                Value::Missing
            ]
        );
        let text = |text: &str| Value::Text(text.to_owned());
        assert_eq!(text("80").order(&text("443")), Ordering::Less);
        assert_eq!(text("nginx").order(&text("Bind")), Ordering::Greater);
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let note = Value::Text("a\u{1b}[2J\nb".to_owned());
        assert_eq!(note.show(UTF8), "a [2J b");
    }
}
