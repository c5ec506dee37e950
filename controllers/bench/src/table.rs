//! The table: a column for each case.

use std::fmt;
use std::time::Duration;

use store_bench::latencies::Latencies;

use crate::options::Case;

/// What was measured in one case.
pub(crate) struct Figures {
    pub(crate) case: Case,
    pub(crate) bound_per_second: f64,
    pub(crate) running_per_second: f64,
    /// From when a pod is seen to exist to when it is seen Running.
    pub(crate) starts: Latencies,
    /// From the request for a single pod to when it is seen Running.
    pub(crate) lone_starts: Latencies,
    /// Of each process, while the ReplicaSets' pods were made.
    pub(crate) costs: Vec<Cost>,
}

/// What a process has cost.
pub(crate) struct Cost {
    /// `apiserver`, or `store` for all members together.
    pub(crate) process: String,
    pub(crate) cpu: Duration,
    pub(crate) memory_bytes: u64,
}

/// The figures of all cases.
#[derive(Default)]
pub(crate) struct Table {
    columns: Vec<Figures>,
}

impl Table {
    pub(crate) fn add(&mut self, figures: Figures) {
        self.columns.push(figures);
    }

    fn row(
        &self,
        f: &mut fmt::Formatter<'_>,
        title: &str,
        value: impl Fn(&Figures) -> String,
    ) -> fmt::Result {
        write!(f, "| {title} |")?;
        for column in &self.columns {
            write!(f, " {} |", value(column))?;
        }
        writeln!(f)
    }
}

impl fmt::Display for Table {
    #[allow(clippy::cast_precision_loss)]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.row(f, "", |figures| figures.case.to_string())?;
        writeln!(f, "| --- |{}", " ---: |".repeat(self.columns.len()))?;
        self.row(f, "waiting pods bound, per second", |figures| number(figures.bound_per_second))?;
        self.row(f, "pods from created to Running, per second", |figures| {
            number(figures.running_per_second)
        })?;
        self.row(f, "a pod's way from created to Running: p50, p99 (ms)", |figures| {
            quantiles(&figures.starts)
        })?;
        self.row(f, "a lone pod's start: p50, p99 (ms)", |figures| {
            quantiles(&figures.lone_starts)
        })?;
        let processes = self.columns.first().map_or(0, |figures| figures.costs.len());
        for at in 0..processes {
            let title = format!("{}: CPU ms per pod, MiB", self.columns[0].costs[at].process);
            self.row(f, &title, |figures| {
                figures.costs.get(at).map_or_else(String::new, |cost| {
                    let cpu_ms = cost.cpu.as_secs_f64() * 1000.0 / figures.starts.count() as f64;
                    let mib = cost.memory_bytes as f64 / f64::from(1 << 20);
                    format!("{cpu_ms:.2}, {mib:.0}")
                })
            })?;
        }
        Ok(())
    }
}

fn quantiles(latencies: &Latencies) -> String {
    let ms = |fraction| number(latencies.quantile(fraction).as_secs_f64() * 1000.0);
    format!("{}, {}", ms(0.5), ms(0.99))
}

/// Whole, or with a digit behind the point when it is small.
fn number(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_for_each_case() {
        let figures = |nodes: usize, rate| Figures {
            case: Case { nodes, pods: 2 },
            bound_per_second: 1234.5,
            running_per_second: rate,
            starts: Latencies::new([10, 20].map(Duration::from_millis).to_vec()),
            lone_starts: Latencies::new(vec![Duration::from_micros(12_340)]),
            costs: vec![Cost {
                process: "store (3 members)".into(),
                cpu: Duration::from_millis(5),
                memory_bytes: 100 << 20,
            }],
        };
        let mut table = Table::default();
        table.add(figures(1, 567.8));
        table.add(figures(10, 99.96));
        let expected = "\
|  | 1 nodes, 2 pods | 10 nodes, 2 pods |
| --- | ---: | ---: |
| waiting pods bound, per second | 1234 | 1234 |
| pods from created to Running, per second | 568 | 100.0 |
| a pod's way from created to Running: p50, p99 (ms) | 10.0, 20.0 | 10.0, 20.0 |
| a lone pod's start: p50, p99 (ms) | 12.3, 12.3 | 12.3, 12.3 |
| store (3 members): CPU ms per pod, MiB | 2.50, 100 | 2.50, 100 |
";
        assert_eq!(table.to_string(), expected);
    }
}
