//! A table of values: built from column definitions, filtered, sorted and laid
//! out as lines of text, for the terminal view and for plain output alike.

pub mod format;
mod style;

pub use style::Style;
use unicode_width::UnicodeWidthStr;

use self::format::Value;

/// What the numbers of a table cover.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Basis {
    /// All since the start; titles are those of counts.
    Totals,
    /// The last interval, of this many seconds; `None` until there are two
    /// snapshots to compare.
    Rates(Option<f64>),
}

impl Basis {
    /// A counter: itself, or its change over the interval.
    pub fn counter(self, total: u64, change: Option<u64>) -> Value {
        match self {
            Self::Totals => Value::Count(total),
            Self::Rates(seconds) => match (change, seconds) {
                (Some(change), Some(seconds)) => Value::Rate(change as f64 / seconds),
                _ => Value::Missing,
            },
        }
    }

    /// The same for a counter of bytes.
    pub fn bytes(self, total: u64, change: Option<u64>) -> Value {
        match self.counter(total, change) {
            Value::Count(bytes) => Value::Bytes(bytes),
            Value::Rate(rate) => Value::ByteRate(rate),
            other => other,
        }
    }
}

/// When a column is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnKind {
    /// As it is.
    Plain,
    /// A counter: its title ends in `/s` where rates are shown.
    Counter,
    /// Only where rates are shown.
    RatesOnly,
}

/// Definition of a column of rows `R`.
pub struct Column<R> {
    /// Heading.
    pub title: &'static str,
    /// When it is shown.
    pub kind: ColumnKind,
    /// Columns of high rank go first where the terminal is narrow; 0 stays.
    pub rank: u8,
    /// The cell of a row.
    pub value: fn(&R, Basis) -> Value,
}

/// Column definitions of rows of a type: title, kind, rank and value of each.
macro_rules! columns {
    ($row:ty; $($title:literal $kind:ident $rank:literal $value:expr;)+) => {
        &[$($crate::table::Column::<$row> {
            title: $title,
            kind: $crate::table::ColumnKind::$kind,
            rank: $rank,
            value: $value,
        }),+]
    };
}
pub(crate) use columns;

/// Heading of a column.
#[derive(Clone, Debug, PartialEq)]
pub struct Heading {
    /// Title, with `/s` for a rate.
    pub title: String,
    /// See [`Column::rank`].
    pub rank: u8,
}

/// Headings and rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// What it shows.
    pub title: &'static str,
    /// What to say when there are no rows.
    pub empty: &'static str,
    /// The headings.
    pub headings: Vec<Heading>,
    /// The column to sort by until another is chosen, largest first; `None`
    /// leaves the rows as they come.
    pub sort: Option<usize>,
    /// One cell for each heading.
    pub rows: Vec<Vec<Value>>,
}

impl Table {
    /// Fills a table. `sort` is the title of a column without `/s`.
    pub fn build<R>(
        title: &'static str,
        empty: &'static str,
        sort: &str,
        columns: &[Column<R>],
        rows: &[R],
        basis: Basis,
    ) -> Self {
        let rates = matches!(basis, Basis::Rates(_));
        let shown: Vec<&Column<R>> = columns
            .iter()
            .filter(|column| rates || column.kind != ColumnKind::RatesOnly)
            .collect();
        Self {
            title,
            empty,
            headings: shown
                .iter()
                .map(|column| Heading {
                    title: match column.kind {
                        ColumnKind::Plain => column.title.to_owned(),
                        ColumnKind::RatesOnly => format!("{}/s", column.title),
                        ColumnKind::Counter if rates => format!("{}/s", column.title),
                        ColumnKind::Counter => column.title.to_owned(),
                    },
                    rank: column.rank,
                })
                .collect(),
            sort: shown.iter().position(|column| column.title == sort),
            rows: rows
                .iter()
                .map(|row| shown.iter().map(|c| (c.value)(row, basis)).collect())
                .collect(),
        }
    }

    /// Without those of the named columns that hold nothing.
    pub fn without_empty(mut self, titles: &[&str]) -> Self {
        for title in titles {
            let position = (self.headings.iter()).position(|heading| heading.title == *title);
            if let Some(column) = position
                && (self.rows.iter()).all(|row| row[column] == Value::Missing)
            {
                self.headings.remove(column);
                self.rows
                    .iter_mut()
                    .for_each(|row| drop(row.remove(column)));
                self.sort = self.sort.map(|sort| sort - usize::from(sort > column));
            }
        }
        self
    }

    /// Whether a column holds text, which is aligned left and sorts upwards.
    pub fn is_text(&self, column: usize) -> bool {
        self.rows
            .iter()
            .filter_map(|row| row.get(column))
            .find(|value| **value != Value::Missing)
            .is_some_and(|value| matches!(value, Value::Text(_)))
    }

    /// Sorts by a column: numbers from the largest, text from the first letter,
    /// or the other way round if `reverse`. Equal rows keep their order.
    pub fn sort_by(&mut self, column: usize, reverse: bool) {
        if column >= self.headings.len() {
            return;
        }
        let ascending = self.is_text(column) != reverse;
        self.rows.sort_by(|a, b| {
            let order = a[column].order(&b[column]);
            if ascending { order } else { order.reverse() }
        });
    }

    /// Keeps the rows in which some text contains `filter`, whatever the case.
    pub fn retain(&mut self, filter: &str) {
        if filter.is_empty() {
            return;
        }
        let filter = filter.to_lowercase();
        self.rows.retain(|row| {
            row.iter().any(
                |value| matches!(value, Value::Text(text) if text.to_lowercase().contains(&filter)),
            )
        });
    }

    /// Lays the table out in lines of at most `width` columns: first the
    /// columns of the highest rank go, then the widest text is cut.
    pub fn lay_out(
        &self,
        width: Option<usize>,
        sorted: Option<(usize, bool)>,
        style: Style,
    ) -> Layout {
        let cells: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|row| row.iter().map(|value| value.show(style)).collect())
            .collect();
        let titles: Vec<String> = self
            .headings
            .iter()
            .enumerate()
            .map(|(i, heading)| match sorted {
                Some((column, reverse)) if column == i => {
                    let up = self.is_text(i) != reverse;
                    let mark = if up {
                        style.pick("▲", "^")
                    } else {
                        style.pick("▼", "v")
                    };
                    format!("{}{mark}", heading.title)
                }
                _ => heading.title.clone(),
            })
            .collect();
        let mut widths: Vec<usize> = titles.iter().map(|title| title.width()).collect();
        for row in &cells {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.width());
            }
        }
        let shown = self.fit(&mut widths, width);
        let line = |cells: &[String]| {
            let mut text = String::new();
            for (n, &i) in shown.iter().enumerate() {
                if n > 0 {
                    text.push_str(GAP);
                }
                let cell = cut(&cells[i], widths[i], style);
                let padding = " ".repeat(widths[i].saturating_sub(cell.width()));
                if self.is_text(i) {
                    text.push_str(&cell);
                    text.push_str(&padding);
                } else {
                    text.push_str(&padding);
                    text.push_str(&cell);
                }
            }
            text.truncate(text.trim_end().len());
            text
        };
        Layout {
            heading: line(&titles),
            rows: cells.iter().map(|row| line(row)).collect(),
            hidden: self.headings.len() - shown.len(),
        }
    }

    /// The columns that are shown; shortens `widths` where that must be.
    fn fit(&self, widths: &mut [usize], available: Option<usize>) -> Vec<usize> {
        let mut shown: Vec<usize> = (0..self.headings.len()).collect();
        let Some(available) = available else {
            return shown;
        };
        let total = |shown: &[usize], widths: &[usize]| {
            shown.iter().map(|&i| widths[i]).sum::<usize>()
                + GAP.len() * shown.len().saturating_sub(1)
        };
        // Cut text down to a readable width before a number has to go.
        for limit in [40, 24] {
            if total(&shown, widths) <= available {
                return shown;
            }
            for &i in &shown {
                if self.is_text(i) {
                    widths[i] = widths[i].min(limit);
                }
            }
        }
        while total(&shown, widths) > available {
            let last = shown
                .iter()
                .enumerate()
                .max_by_key(|&(n, &i)| (self.headings[i].rank, n))
                .filter(|&(_, &i)| self.headings[i].rank > 0)
                .map(|(n, _)| n);
            match last {
                Some(n) => drop(shown.remove(n)),
                None => break,
            }
        }
        while total(&shown, widths) > available {
            match shown.iter().copied().max_by_key(|&i| widths[i]) {
                Some(widest) if widths[widest] > 1 => widths[widest] -= 1,
                _ => break,
            }
        }
        shown
    }
}

const GAP: &str = "  ";

/// A table as lines of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The line of the headings.
    pub heading: String,
    /// A line for each row.
    pub rows: Vec<String>,
    /// How many columns found no room.
    pub hidden: usize,
}

/// `text` in at most `width` columns.
pub fn cut(text: &str, width: usize, style: Style) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mark = style.pick("…", "~");
    let mut short = String::new();
    for c in text.chars() {
        if short.width() + unicode_width::UnicodeWidthChar::width(c).unwrap_or(0) + 1 > width {
            break;
        }
        short.push(c);
    }
    if width > 0 {
        short.push_str(mark);
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Row(&'static str, u64, u64);

    const COLUMNS: &[Column<Row>] = &[
        Column {
            title: "name",
            kind: ColumnKind::Plain,
            rank: 0,
            value: |r, _| Value::Text(r.0.to_owned()),
        },
        Column {
            title: "now",
            kind: ColumnKind::Plain,
            rank: 1,
            value: |r, _| Value::Count(r.1),
        },
        Column {
            title: "seen",
            kind: ColumnKind::Counter,
            rank: 2,
            value: |r, basis| basis.counter(r.2, Some(r.2 / 2)),
        },
    ];

    fn table(basis: Basis) -> Table {
        let rows = [Row("nginx", 5, 1000), Row("bind", 70, 20), Row("Ssh", 5, 0)];
        Table::build("t", "none", "seen", COLUMNS, &rows, basis)
    }

    fn names(table: &Table) -> Vec<String> {
        table.rows.iter().map(|r| r[0].show(Style::PLAIN)).collect()
    }

    #[test]
    fn totals_and_rates_come_from_one_definition() {
        let totals = table(Basis::Totals).lay_out(None, None, Style::PLAIN);
        assert_eq!(totals.heading, "name   now   seen");
        assert_eq!(totals.rows[0], "nginx    5  1,000");
        let rates = table(Basis::Rates(Some(2.0))).lay_out(None, None, Style::PLAIN);
        assert_eq!(rates.heading, "name   now  seen/s");
        assert_eq!(rates.rows[0], "nginx    5     250");
        let unknown = table(Basis::Rates(None)).lay_out(None, None, Style::PLAIN);
        assert_eq!(unknown.rows[0], "nginx    5       -");
    }

    #[test]
    fn sorting_is_by_value_and_stable() {
        let mut table = table(Basis::Totals);
        table.sort_by(1, false);
        assert_eq!(names(&table), ["bind", "nginx", "Ssh"]);
        table.sort_by(1, true);
        assert_eq!(names(&table), ["nginx", "Ssh", "bind"]);
        table.sort_by(0, false);
        assert_eq!(names(&table), ["bind", "nginx", "Ssh"]);
        table.sort_by(99, false);
        assert_eq!(names(&table), ["bind", "nginx", "Ssh"]);
    }

    #[test]
    fn the_filter_looks_at_text_whatever_its_case() {
        let mut table = table(Basis::Totals);
        table.retain("S");
        assert_eq!(names(&table), ["Ssh"]);
        table.retain("5");
        assert!(table.rows.is_empty(), "numbers are not searched");
    }

    #[test]
    fn narrow_layouts_drop_columns_by_rank_and_then_cut_text() {
        let table = table(Basis::Totals);
        let at = |width| table.lay_out(Some(width), None, Style::PLAIN);
        assert_eq!((at(17).hidden, at(16).hidden), (0, 1));
        assert_eq!(at(16).heading, "name   now");
        assert_eq!(at(9).hidden, 2);
        assert_eq!(at(4).rows[0], "ngi~");
        assert_eq!(at(0).rows[0].len(), 1);
        for width in 0..30 {
            let layout = at(width);
            assert!(layout.rows.iter().all(|row| row.width() <= width.max(1)));
        }
    }

    #[test]
    fn a_table_without_rows_has_headings() {
        let empty = Table::build("t", "none", "", COLUMNS, &[], Basis::Totals);
        let layout = empty.lay_out(Some(80), Some((0, false)), Style::PLAIN);
        assert_eq!(layout.heading, "namev  now  seen");
        assert!(layout.rows.is_empty());
    }

    #[test]
    fn wide_characters_count_as_two() {
        let style = Style {
            color: false,
            unicode: true,
        };
        assert_eq!(cut("日本語", 6, style), "日本語");
        assert_eq!(cut("日本語", 5, style), "日本…");
        assert_eq!(cut("日本語", 4, style), "日…");
        assert_eq!(cut("abc", 0, style), "");
    }
}
