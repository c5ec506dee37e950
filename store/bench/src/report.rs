//! The table: medians of the rounds for both systems, and how much better the second one is.

use std::fmt;

/// Which of two figures is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    Higher,
    Lower,
}

/// One or more figures of one measurement that belong on one line, such as two quantiles.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    what: String,
    better: Better,
    values: Vec<f64>,
}

impl Line {
    pub(crate) fn new(what: impl Into<String>, better: Better, values: Vec<f64>) -> Self {
        Self { what: what.into(), better, values }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.what, joined(self.values.iter().copied().map(number)))
    }
}

/// Rows in the order in which they were first added.
pub(crate) struct Table {
    first: String,
    second: String,
    rows: Vec<Row>,
}

struct Row {
    title: String,
    first: Vec<Vec<Line>>,
    second: Vec<Vec<Line>>,
}

impl Table {
    /// A table of two systems with these names.
    pub(crate) fn new(first: String, second: String) -> Self {
        Self { first, second, rows: Vec::new() }
    }

    /// Adds one turn's figures.
    pub(crate) fn add(&mut self, title: &str, second: bool, lines: Vec<Line>) {
        let at = self.rows.iter().position(|row| row.title == title).unwrap_or_else(|| {
            let row = Row { title: title.to_owned(), first: Vec::new(), second: Vec::new() };
            self.rows.push(row);
            self.rows.len() - 1
        });
        let row = &mut self.rows[at];
        if second { &mut row.second } else { &mut row.first }.push(lines);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| | | {} | {} | times better |", self.first, self.second)?;
        writeln!(f, "| --- | --- | ---: | ---: | ---: |")?;
        for row in &self.rows {
            let (first, second) = (medians(&row.first), medians(&row.second));
            for (at, (first, second)) in first.iter().zip(&second).enumerate() {
                let title = if at == 0 { row.title.as_str() } else { "" };
                let ratios = first
                    .values
                    .iter()
                    .zip(&second.values)
                    .map(|(first_value, second_value)| match first.better {
                        Better::Higher => second_value / first_value,
                        Better::Lower => first_value / second_value,
                    })
                    .map(|ratio| format!("{ratio:.2}"));
                writeln!(
                    f,
                    "| {title} | {} | {} | {} | {} |",
                    first.what,
                    joined(first.values.iter().copied().map(number)),
                    joined(second.values.iter().copied().map(number)),
                    joined(ratios),
                )?;
            }
        }
        Ok(())
    }
}

/// The median of every figure over all rounds.
fn medians(rounds: &[Vec<Line>]) -> Vec<Line> {
    let Some(first) = rounds.first() else { return Vec::new() };
    let value = |line: usize, at: usize| {
        let of_round = |round: &Vec<Line>| round.get(line)?.values.get(at).copied();
        median(rounds.iter().filter_map(of_round).collect())
    };
    let line = |(at, line): (usize, &Line)| Line {
        values: (0..line.values.len()).map(|column| value(at, column)).collect(),
        ..line.clone()
    };
    first.iter().enumerate().map(line).collect()
}

/// The middle one, or the mean of the two in the middle; not a number if there are none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    match (values.len(), values.len() / 2) {
        (0, _) => f64::NAN,
        (count, middle) if count % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
        (_, middle) => values[middle],
    }
}

fn joined(values: impl Iterator<Item = String>) -> String {
    values.collect::<Vec<_>>().join(", ")
}

/// Three significant digits, or whole.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_medians_and_what_is_better() {
        let mut table = Table::new("etcd 3".into(), "miniku 1".into());
        for (second, per_second, p50, p99) in [
            (false, 100.0, 2.0, 9.0),
            (true, 250.0, 1.0, 20.0),
            (false, 300.0, 4.0, 10.0),
            (true, 400.0, 1.5, 20.0),
            (false, 200.0, 3.0, 11.0),
            (true, 300.0, 9.0, 20.0),
        ] {
            let lines = vec![
                Line::new("per second", Better::Higher, vec![per_second]),
                Line::new("p50, p99", Better::Lower, vec![p50, p99]),
            ];
            table.add("puts", second, lines);
        }
        let expected = "\
| | | etcd 3 | miniku 1 | times better |
| --- | --- | ---: | ---: | ---: |
| puts | per second | 200 | 300 | 1.50 |
|  | p50, p99 | 3.00, 10.0 | 1.50, 20.0 | 2.00, 0.50 |
";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn a_median_of_two_is_between_them() {
        assert!((median(vec![3.0, 1.0]) - 2.0).abs() < f64::EPSILON);
        assert!(median(Vec::new()).is_nan());
    }
}
