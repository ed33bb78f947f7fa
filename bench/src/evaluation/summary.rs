//! Samples put together: medians, and how far they spread.

use std::collections::BTreeMap;

use serde::Serialize;

use super::results::Data;

/// What repeated samples come to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The middle one, or the mean of the two middle ones.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// How many there are.
    pub n: usize,
}

impl Summary {
    /// Summarises samples; there must be one.
    pub fn of(mut values: Vec<f64>) -> Self {
        assert!(!values.is_empty());
        values.sort_by(f64::total_cmp);
        let n = values.len();
        let median = (values[(n - 1) / 2] + values[n / 2]) / 2.0;
        Self { median, min: values[0], max: values[n - 1], n }
    }
}

/// All samples of one metric of an experiment: a table, or a figure.
#[derive(Clone, Debug)]
pub struct Group {
    /// The experiment.
    pub experiment: String,
    /// What was measured.
    pub metric: String,
    /// In what unit.
    pub unit: String,
    /// Configurations, in the order in which they were told.
    pub series: Vec<String>,
    /// Categories or numbers; numbers ascend.
    pub xs: Vec<String>,
    cells: BTreeMap<(usize, usize), Summary>,
}

impl Group {
    /// The summary of a configuration at a place of the x axis.
    pub fn cell(&self, series: &str, x: &str) -> Option<Summary> {
        let series = self.series.iter().position(|s| s == series)?;
        let x = self.xs.iter().position(|other| other == x)?;
        self.cells.get(&(series, x)).copied()
    }

    /// The x axis as numbers, if it has nothing else and more than one.
    pub fn numbers(&self) -> Option<Vec<f64>> {
        let numbers: Option<Vec<f64>> = self.xs.iter().map(|x| x.parse().ok()).collect();
        numbers.filter(|numbers| numbers.len() > 1)
    }

    /// A group for the samples of a raw data set that `chosen` takes, by experiment and metric.
    pub fn all(data: &Data) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        let mut values: Vec<BTreeMap<(usize, usize), Vec<f64>>> = Vec::new();
        for sample in &data.samples {
            let found = groups.iter().position(|g| {
                g.experiment == sample.experiment
                    && g.metric == sample.metric
                    && g.unit == sample.unit
            });
            let number = found.unwrap_or_else(|| {
                groups.push(Self {
                    experiment: sample.experiment.clone(),
                    metric: sample.metric.clone(),
                    unit: sample.unit.clone(),
                    series: Vec::new(),
                    xs: Vec::new(),
                    cells: BTreeMap::new(),
                });
                values.push(BTreeMap::new());
                groups.len() - 1
            });
            let group = &mut groups[number];
            let series = place(&mut group.series, &sample.series);
            let x = place(&mut group.xs, &sample.x);
            values[number].entry((series, x)).or_default().push(sample.value);
        }
        for (group, values) in groups.iter_mut().zip(values) {
            group.cells =
                values.into_iter().map(|(key, values)| (key, Summary::of(values))).collect();
            group.sort_numbers();
        }
        groups
    }

    fn sort_numbers(&mut self) {
        let Some(numbers) = self.numbers() else { return };
        let mut order: Vec<usize> = (0..numbers.len()).collect();
        order.sort_by(|a, b| numbers[*a].total_cmp(&numbers[*b]));
        self.xs = order.iter().map(|old| self.xs[*old].clone()).collect();
        let cells = std::mem::take(&mut self.cells);
        let new =
            |old: usize| order.iter().position(|other| *other == old).expect("is one of them");
        self.cells = cells.into_iter().map(|((s, x), summary)| ((s, new(x)), summary)).collect();
    }
}

fn place(list: &mut Vec<String>, item: &str) -> usize {
    list.iter().position(|other| other == item).unwrap_or_else(|| {
        list.push(item.into());
        list.len() - 1
    })
}

/// A number with three digits that count, as tables and axes show it.
pub fn shown(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 {
        "0".into()
    } else if size >= 1e7 {
        format!("{value:.2e}")
    } else if size >= 100.0 {
        format!("{value:.0}")
    } else {
        let decimals = (2 - size.log10().floor() as i32).clamp(0, 6) as usize;
        let text = format!("{value:.decimals$}");
        text.trim_end_matches('0').trim_end_matches('.').into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spread() {
        let odd = Summary::of(vec![3.0, 1.0, 2.0]);
        assert_eq!((odd.median, odd.min, odd.max, odd.n), (2.0, 1.0, 3.0, 3));
        assert_eq!(Summary::of(vec![4.0, 1.0, 2.0, 3.0]).median, 2.5);
    }

    #[test]
    fn numbers_have_three_digits() {
        for (value, text) in [
            (0.0, "0"),
            (0.01234, "0.0123"),
            (1.0, "1"),
            (12.34, "12.3"),
            (99.96, "100"),
            (12345.6, "12346"),
            (0.5, "0.5"),
        ] {
            assert_eq!(shown(value), text);
        }
    }
}
