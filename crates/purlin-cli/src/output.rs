//! Standard output and standard error, for people at a terminal and for programs behind a pipe.

use std::io::{self, BufWriter, IsTerminal, Stderr, Stdout, Write};

use serde::Serialize;

use crate::{args::OutputForm, exit::Done};

/// Where results and remarks go.
#[derive(Debug)]
pub(crate) struct Output {
    out: BufWriter<Stdout>,
    err: Stderr,
    form: OutputForm,
    colour: bool,
    err_colour: bool,
}

/// What a word wants to convey; colour is only ever an addition to the word itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Doubtful,
    Bad,
    Quiet,
    Strong,
}

impl Tone {
    fn code(self) -> &'static str {
        match self {
            Self::Good => "32",
            Self::Doubtful => "33",
            Self::Bad => "31",
            Self::Quiet => "2",
            Self::Strong => "1",
        }
    }

    pub(crate) fn of_state(state: &str) -> Self {
        match state {
            "alive" => Self::Good,
            "suspect" | "draining" => Self::Doubtful,
            "down" => Self::Bad,
            _ => Self::Quiet,
        }
    }
}

impl Output {
    pub(crate) fn new(form: OutputForm) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self {
            out: BufWriter::with_capacity(64 << 10, io::stdout()),
            err: io::stderr(),
            form,
            colour: wanted && io::stdout().is_terminal(),
            err_colour: wanted && io::stderr().is_terminal(),
        }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.form == OutputForm::Json
    }

    pub(crate) fn want_json(&mut self) {
        self.form = OutputForm::Json;
    }

    pub(crate) fn is_terminal(&self) -> bool {
        io::stdout().is_terminal()
    }

    /// `text` dressed in `tone` when standard output is a terminal that wants it.
    pub(crate) fn toned(&self, tone: Tone, text: &str) -> String {
        if self.colour { format!("\x1b[{}m{text}\x1b[0m", tone.code()) } else { text.to_owned() }
    }

    /// As [`Output::toned`], padded to `width` by its visible length.
    pub(crate) fn toned_cell(&self, tone: Tone, text: &str, width: usize) -> String {
        let padding = " ".repeat(width.saturating_sub(text.chars().count()));
        format!("{}{padding}", self.toned(tone, text))
    }

    pub(crate) fn line(&mut self, text: &str) -> Done {
        self.out.write_all(text.as_bytes())?;
        self.out.write_all(b"\n")?;
        Ok(())
    }

    /// What a program of the cluster wrote, to the stream it wrote it to.
    pub(crate) fn program(&mut self, is_error: bool, bytes: &[u8]) -> Done {
        if !is_error {
            self.out.write_all(bytes)?;
            return Ok(());
        }
        // In the order in which it was written, as far as two streams have one.
        self.out.flush()?;
        // Standard error may be closed; there is nowhere left to say so.
        drop(self.err.write_all(bytes));
        Ok(())
    }

    /// Bytes as they are; a line end follows only where a person reads.
    pub(crate) fn value(&mut self, bytes: &[u8]) -> Done {
        self.out.write_all(bytes)?;
        if self.is_terminal() && !bytes.ends_with(b"\n") {
            self.out.write_all(b"\n")?;
        }
        Ok(())
    }

    pub(crate) fn bytes_line(&mut self, bytes: &[u8]) -> Done {
        self.out.write_all(bytes)?;
        self.out.write_all(b"\n")?;
        Ok(())
    }

    pub(crate) fn json(&mut self, value: &impl Serialize) -> Done {
        serde_json::to_writer(&mut self.out, value).map_err(io::Error::from)?;
        self.out.write_all(b"\n")?;
        Ok(())
    }

    pub(crate) fn flush(&mut self) -> Done {
        self.out.flush()?;
        Ok(())
    }

    /// Clears the screen of a terminal; nothing elsewhere.
    pub(crate) fn clear_screen(&mut self) -> Done {
        if self.is_terminal() {
            self.out.write_all(b"\x1b[H\x1b[2J")?;
        }
        Ok(())
    }

    /// A remark for the person: never part of the result.
    pub(crate) fn note(&mut self, text: &str) {
        let text =
            if self.err_colour { format!("\x1b[2m{text}\x1b[0m\n") } else { format!("{text}\n") };
        // Standard error may be closed; there is nowhere left to say so.
        drop(self.err.write_all(text.as_bytes()));
    }

    /// The sentence a failing command ends with.
    pub(crate) fn failure(&mut self, text: &str) {
        let label = if self.err_colour { "\x1b[31mpurlin:\x1b[0m" } else { "purlin:" };
        drop(self.err.write_all(format!("{label} {text}\n").as_bytes()));
    }
}

/// Lines up `rows` under `head`; the last column is not padded.
pub(crate) fn table(head: &[&str], rows: &[Vec<(Tone, String)>], output: &mut Output) -> Done {
    let widths: Vec<usize> = head
        .iter()
        .enumerate()
        .map(|(column, title)| {
            let cells =
                rows.iter().filter_map(|row| row.get(column)).map(|(_, text)| text.chars().count());
            cells.chain([title.chars().count()]).max().unwrap_or(0)
        })
        .collect();
    let last = head.len().saturating_sub(1);
    let mut line = String::new();
    for (column, title) in head.iter().enumerate() {
        line.push_str(&output.toned_cell(
            Tone::Quiet,
            title,
            if column == last { 0 } else { widths[column] + 2 },
        ));
    }
    output.line(line.trim_end())?;
    for row in rows {
        line.clear();
        for (column, (tone, text)) in row.iter().enumerate() {
            line.push_str(&output.toned_cell(
                *tone,
                text,
                if column == last { 0 } else { widths[column] + 2 },
            ));
        }
        output.line(line.trim_end())?;
    }
    Ok(())
}

/// `950 µs`, `12.3 ms`, `4.5 s`, `3 min`, `2 h`.
pub(crate) fn human_micros(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{}.{} ms", micros / 1_000, micros % 1_000 / 100),
        1_000_000..120_000_000 => {
            format!("{}.{} s", micros / 1_000_000, micros % 1_000_000 / 100_000)
        }
        120_000_000..7_200_000_000 => format!("{} min", micros / 60_000_000),
        _ => format!("{} h", micros / 3_600_000_000),
    }
}

/// `512 B`, `12.3 kB`, `4.5 MB`.
pub(crate) fn human_bytes(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{}.{} kB", bytes / 1_000, bytes % 1_000 / 100),
        _ => format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000),
    }
}

#[cfg(test)]
mod tests {
    use super::{human_bytes, human_micros};

    #[test]
    fn quantities_read_with_one_decimal() {
        assert_eq!(human_micros(950), "950 µs");
        assert_eq!(human_micros(12_345), "12.3 ms");
        assert_eq!(human_micros(4_560_000), "4.5 s");
        assert_eq!(human_micros(180_000_000), "3 min");
        assert_eq!(human_bytes(1_234_567), "1.2 MB");
    }
}
