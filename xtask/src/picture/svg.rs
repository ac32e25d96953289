//! The screen of a terminal as SVG. Pure: takes cells and gives text.

use std::fmt::Write as _;

use vt100::{Cell, Color, Screen};

/// Width of a cell and height of a row in user units, and how large the letters
/// are.
const WIDTH: f64 = 8.0;
const HEIGHT: f64 = 18.0;
const LETTERS: f64 = 13.0;
/// Where the letters stand in a row.
const BASE: f64 = 13.0;
/// Around the screen, and for the line above it that says what it is.
const MARGIN: f64 = 14.0;
const TITLE: f64 = 30.0;
/// Letters and background where a program names no colour.
const INK: &str = "#d4dae3";
const PAPER: &str = "#10151c";
/// Frame and title.
const FRAME: &str = "#2b3440";
const FAINT: &str = "#7d8898";
/// The sixteen colours that programs name by number.
const PALETTE: [&str; 16] = [
    "#3b4252", "#e5696f", "#8cc570", "#e6c067", "#6ca6ec", "#c08be6", "#56c2cf", "#c8d0dc",
    "#7d8898", "#f08b90", "#a8d88f", "#f2d48a", "#8fbdf5", "#d3a9f0", "#7fd6e0", "#f4f6fa",
];

/// How a cell looks.
#[derive(Clone, PartialEq)]
struct Look {
    ink: String,
    paper: String,
    is_bold: bool,
    is_underlined: bool,
}

impl Look {
    fn of(cell: &Cell) -> Self {
        let (mut ink, mut paper) = (color(cell.fgcolor(), INK), color(cell.bgcolor(), PAPER));
        if cell.inverse() {
            std::mem::swap(&mut ink, &mut paper);
        }
        Self {
            ink,
            paper,
            is_bold: cell.bold(),
            is_underlined: cell.underline(),
        }
    }
}

fn color(color: Color, default: &str) -> String {
    match color {
        Color::Default => default.to_owned(),
        Color::Idx(n) => indexed(n),
        Color::Rgb(r, g, b) => format!("#{r:02x}{g:02x}{b:02x}"),
    }
}

/// One of the 256 colours: the palette, a cube of six steps, 24 greys.
fn indexed(n: u8) -> String {
    let step = |n: u8| if n == 0 { 0 } else { 55 + 40 * n };
    match n {
        0..=15 => PALETTE[usize::from(n)].to_owned(),
        16..=231 => {
            let n = n - 16;
            let [r, g, b] = [n / 36, n / 6 % 6, n % 6].map(step);
            format!("#{r:02x}{g:02x}{b:02x}")
        }
        232..=255 => {
            let grey = 8 + 10 * (n - 232);
            format!("#{grey:02x}{grey:02x}{grey:02x}")
        }
    }
}

/// Draws a screen with a line above it. The letters are those that the reader's
/// machine has; each piece of text says how wide it is, so that columns stand
/// below each other in any font.
pub fn draw(screen: &Screen, title: &str) -> String {
    let (rows, columns) = screen.size();
    let (rows, columns) = (rows.get(), columns.get());
    let width = f64::from(columns) * WIDTH + 2.0 * MARGIN;
    let height = f64::from(rows) * HEIGHT + TITLE + MARGIN;
    let mut svg = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" role=\"img\" font-size=\"{LETTERS}\" \
         font-family=\"ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace\">\n\
         <title>{title}</title>\n\
         <style>text{{white-space:pre;fill:{INK}}}.b{{font-weight:700}}</style>\n\
         <rect x=\".5\" y=\".5\" width=\"{}\" height=\"{}\" rx=\"7\" fill=\"{PAPER}\" stroke=\"{FRAME}\"/>\n\
         <text x=\"{}\" y=\"19\" text-anchor=\"middle\" style=\"fill:{FAINT}\">{title}</text>",
        width - 1.0,
        height - 1.0,
        width / 2.0,
        title = escape(title),
    );
    for row in 0..rows {
        draw_row(&mut svg, screen, row, columns);
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw_row(svg: &mut String, screen: &Screen, row: u16, columns: u16) {
    let mut column = 0;
    while column < columns {
        let begin = column;
        let mut text = String::new();
        let mut look: Option<Look> = None;
        while column < columns
            && let Some(cell) = screen.cell(row, column)
        {
            let this = Look::of(cell);
            if look.as_ref().is_some_and(|look| *look != this) {
                break;
            }
            look = Some(this);
            text.push_str(match cell.contents() {
                "" if cell.is_wide_continuation() => "",
                "" => " ",
                letters => letters,
            });
            column += 1;
        }
        match look {
            Some(look) => draw_run(svg, row, begin, column - begin, &text, &look),
            None => return,
        }
    }
}

/// Cells that look alike.
fn draw_run(svg: &mut String, row: u16, column: u16, cells: u16, text: &str, look: &Look) {
    let at = |column: u16| MARGIN + f64::from(column) * WIDTH;
    let top = TITLE + f64::from(row) * HEIGHT;
    let (x, width) = (at(column), f64::from(cells) * WIDTH);
    if look.paper != PAPER {
        let paper = &look.paper;
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{top}\" width=\"{width}\" height=\"{HEIGHT}\" fill=\"{paper}\"/>"
        );
    }
    if look.is_underlined {
        let y = top + HEIGHT - 1.5;
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"1\" fill=\"{FAINT}\"/>"
        );
    }
    for (skipped, words) in pieces(text) {
        let length = words.chars().count();
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\" textLength=\"{}\"",
            at(column + skipped),
            top + BASE,
            length as f64 * WIDTH
        );
        if look.is_bold {
            svg.push_str(" class=\"b\"");
        }
        if look.ink != INK {
            let _ = write!(svg, " style=\"fill:{}\"", look.ink);
        }
        let _ = writeln!(svg, ">{}</text>", escape(words));
    }
}

/// The pieces of a text between two blanks or more, each with how many letters
/// are before it.
fn pieces(text: &str) -> Vec<(u16, &str)> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut skipped = 0;
    loop {
        let trimmed = rest.trim_start_matches(' ');
        skipped += (rest.len() - trimmed.len()) as u16;
        if trimmed.is_empty() {
            return pieces;
        }
        let piece = trimmed.split("  ").next().unwrap_or(trimmed).trim_end();
        pieces.push((skipped, piece));
        skipped += piece.chars().count() as u16;
        rest = &trimmed[piece.len()..];
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(bytes: &str) -> String {
        let [rows, columns] = [2, 20].map(|n| n.try_into().unwrap());
        let mut emulator = vt100::Parser::new(rows, columns, 0);
        emulator.process(bytes.as_bytes());
        draw(emulator.screen(), "a & b")
    }

    #[test]
    fn pieces_keep_their_columns() {
        assert_eq!(pieces("  ab c   é  d "), [(2, "ab c"), (9, "é"), (12, "d")]);
        assert_eq!(pieces("   "), []);
        assert_eq!(pieces(""), []);
    }

    #[test]
    fn text_stands_in_its_cell_with_its_width() {
        let svg = drawn("\x1b[2;4H<x>");
        let x = MARGIN + 3.0 * WIDTH;
        let y = TITLE + HEIGHT + BASE;
        let expected = format!("<text x=\"{x}\" y=\"{y}\" textLength=\"24\">&lt;x&gt;</text>");
        assert!(svg.contains(&expected), "{svg}");
        assert!(svg.contains("<title>a &amp; b</title>"), "{svg}");
    }

    #[test]
    fn looks_are_drawn() {
        let svg = drawn("\x1b[1;33mwarm\x1b[0;7mback\x1b[0;4mline\x1b[0;38;5;196mred");
        let warm = format!("class=\"b\" style=\"fill:{}\">warm<", PALETTE[3]);
        assert!(svg.contains(&warm), "{svg}");
        assert!(svg.contains(&format!("fill=\"{INK}\"/>")), "{svg}");
        let back = format!("style=\"fill:{PAPER}\">back<");
        assert!(svg.contains(&back), "{svg}");
        assert!(svg.contains("height=\"1\""), "{svg}");
        assert!(svg.contains("style=\"fill:#ff0000\">red<"), "{svg}");
    }

    #[test]
    fn colours_by_number_are_those_of_terminals() {
        for (n, color) in [
            (1, PALETTE[1]),
            (16, "#000000"),
            (231, "#ffffff"),
            (232, "#080808"),
            (255, "#eeeeee"),
        ] {
            assert_eq!(indexed(n), color);
        }
    }
}
