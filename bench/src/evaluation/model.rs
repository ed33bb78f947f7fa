//! What a time follows from: the link's round trip and rate, sizes, and this machine's work.
//!
//! ```text
//! T = max(W, 8 B / min(R, w / L)) + n L
//!
//!   L  round trip (s)                n  round trips that are waited for, one after another
//!   R  rate of the link (bit/s)      B  bytes that cross the link
//!   w  bits that may be under way    W  seconds of work: FUSE, ciphers, disk
//! ```
//!
//! Work and transfer overlap, so the longer of them counts; what is waited for adds to it. B is
//! counted by the link. n and W of a workload follow from two links that differ in their round trip
//! alone, `LAN` and `WAN`; all other links are predicted, and compared with what was measured.
//!
//! Several clones at once through one LAN cache take the longest of: one alone, all their work
//! divided among the processors that they have, all their bytes on the LAN. The work of each further
//! one is what the second adds; more than two are predicted.

use super::summary::{Group, Summary};

/// Bits under way: 4 stripes with the 2 MiB that OpenSSH grants a channel.
const WINDOW_BITS: f64 = 4.0 * 2.0 * 1024.0 * 1024.0 * 8.0;
const MIB: f64 = 1048576.0;
/// Links that n and W are found with; the others are predicted.
const FITTED: [&str; 2] = ["LAN", "WAN"];

/// A link.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Round trip in s.
    pub rtt: f64,
    /// Rate in bit/s.
    pub rate: f64,
}

/// What a workload costs, wherever it runs.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Seconds of work that go on while bytes are under way.
    pub work: f64,
    /// Round trips that are waited for.
    pub trips: f64,
    /// Bytes that cross the link.
    pub bytes: f64,
}

impl Workload {
    /// Finds work and round trips from times on two links that differ in their round trip.
    pub fn fit(near: (Link, f64), far: (Link, f64), bytes: f64) -> Self {
        let trips = ((far.1 - near.1) / (far.0.rtt - near.0.rtt)).max(0.0);
        Self { work: (near.1 - trips * near.0.rtt).max(0.0), trips, bytes }
    }

    /// The time on a link, in s.
    pub fn time(&self, link: Link) -> f64 {
        self.parts(link).iter().map(|(_, time)| *time).fold(0.0, f64::max) + self.trips * link.rtt
    }

    fn parts(&self, link: Link) -> [(&'static str, f64); 3] {
        let bits = self.bytes * 8.0;
        [
            ("work", self.work),
            ("the link's rate", bits / link.rate),
            ("the SSH window", bits * link.rtt / WINDOW_BITS),
        ]
    }

    /// What most of the time on a link is spent for.
    pub fn limit(&self, link: Link) -> &'static str {
        let waiting = ("round trips", self.trips * link.rtt);
        let all = self.parts(link).into_iter().chain([waiting]);
        all.max_by(|a, b| a.1.total_cmp(&b.1)).map_or("", |(name, _)| name)
    }
}

/// A prediction beside what was measured.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The link's name.
    pub link: String,
    /// What was done on it.
    pub workload: String,
    /// In s.
    pub predicted: f64,
    /// In s.
    pub measured: Summary,
}

/// The model of all workloads of the experiment `links`.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// By name.
    pub workloads: Vec<(String, Workload)>,
    /// Predictions for links that were not used to find them.
    pub checked: Vec<Checked>,
}

impl Model {
    /// Makes it from the groups of raw data; empty where these have not what it takes.
    pub fn of(groups: &[Group]) -> Self {
        let find =
            |metric: &str| groups.iter().find(|g| g.experiment == "links" && g.metric == metric);
        let (Some(time), Some(bytes), Some(rtt), Some(rate)) =
            (find("time"), find("bytes over the link"), find("round trip"), find("rate"))
        else {
            return Self::default();
        };
        let link = |name: &str| {
            let only = |group: &Group| Some(group.cell(name, group.xs.first()?)?.median);
            Some(Link { rtt: only(rtt)? / 1e3, rate: only(rate)? * 1e6 })
        };
        let mut model = Self::default();
        for name in &time.xs {
            let point = |on: &str| Some((link(on)?, time.cell(on, name)?.median));
            let (Some(near), Some(far)) = (point(FITTED[0]), point(FITTED[1])) else { continue };
            let Some(carried) = bytes.cell(FITTED[1], name) else { continue };
            let workload = Workload::fit(near, far, carried.median * MIB);
            model.workloads.push((name.clone(), workload));
            for series in time.series.iter().filter(|s| !FITTED.contains(&s.as_str())) {
                if let (Some(link), Some(measured)) = (link(series), time.cell(series, name)) {
                    let predicted = workload.time(link);
                    let (link, workload) = (series.clone(), name.clone());
                    model.checked.push(Checked { link, workload, predicted, measured });
                }
            }
        }
        model
    }
}

/// Clones through an empty LAN cache, one and two at once, and what follows from them for many.
#[derive(Clone, Copy, Debug)]
pub struct Fleet {
    /// Seconds that one takes.
    pub one: f64,
    /// Seconds of all processors' work in these.
    pub work: f64,
    /// Seconds of work that each further one adds.
    pub further: f64,
    /// Bytes over the WAN.
    pub bytes: f64,
}

impl Fleet {
    /// How many at once it is found with, as the x axis has them.
    pub const FITTED: [&str; 2] = ["1", "2"];

    /// Finds it in the groups of raw data.
    pub fn of(groups: &[Group]) -> Option<Self> {
        let cell = |metric: &str, count: &str| {
            let group = groups.iter().find(|g| g.experiment == "fleet" && g.metric == metric)?;
            Some(group.cell("cold", count)?.median)
        };
        let [one, two] = Self::FITTED.map(|count| cell("processor time", count));
        let work = one?;
        Some(Self {
            one: cell("time", Self::FITTED[0])?,
            work,
            further: two.map_or(work, |two| (two - work).max(0.0)),
            bytes: cell("bytes over the WAN", Self::FITTED[0])? * MIB,
        })
    }

    /// The time of `count` at once in s: with so many processors in all, and bit/s on the LAN.
    pub fn time(&self, count: f64, processors: f64, lan: f64) -> f64 {
        let work = self.work + (count - 1.0) * self.further;
        self.one.max(work / processors).max(count * self.bytes * 8.0 / lan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::results::{Data, Meta, Sample};

    const NEAR: Link = Link { rtt: 0.0002, rate: 1e9 };
    const FAR: Link = Link { rtt: 0.032, rate: 1e9 };

    #[test]
    fn what_was_put_in_is_found_again() {
        let real = Workload { work: 2.0, trips: 50.0, bytes: 1e8 };
        let found = Workload::fit((NEAR, real.time(NEAR)), (FAR, real.time(FAR)), 1e8);
        assert!((found.work - 2.0).abs() < 1e-9 && (found.trips - 50.0).abs() < 1e-9, "{found:?}");
        let slow = Link { rtt: 0.032, rate: 1e8 };
        assert!((found.time(slow) - (8.0 + 1.6)).abs() < 1e-9);
        assert_eq!(found.limit(slow), "the link's rate");
        // 8 MiB each 2 s.
        let distant = Link { rtt: 2.0, rate: 1e9 };
        let transfer = 1e8 / (8.0 * 1024.0 * 1024.0) * 2.0;
        assert!((found.time(distant) - (transfer + 100.0)).abs() < 1e-9);
        assert_eq!(found.limit(distant), "round trips");
    }

    #[test]
    fn a_fleet_waits_for_its_slowest_resource() {
        let fleet = Fleet { one: 4.0, work: 2.0, further: 1.0, bytes: 1e8 };
        assert_eq!(fleet.time(2.0, 2.0, 1e10), 4.0);
        assert_eq!(fleet.time(9.0, 2.0, 1e10), 5.0);
        assert_eq!(fleet.time(8.0, 16.0, 1e9), 6.4);
    }

    #[test]
    fn a_fleet_is_found_in_raw_data() {
        let sample = |x: &str, metric: &str, unit: &str, value| Sample {
            experiment: "fleet".into(),
            series: "cold".into(),
            x: x.into(),
            metric: metric.into(),
            unit: unit.into(),
            value,
        };
        let mut samples = vec![
            sample("1", "time", "s", 4.0),
            sample("1", "processor time", "s", 3.0),
            sample("1", "bytes over the WAN", "MiB", 64.0),
        ];
        let found = |samples: &[Sample]| {
            let (meta, parts, notes) = (Meta::default(), Vec::new(), Vec::new());
            Fleet::of(&Group::all(&Data { meta, parts, samples: samples.to_vec(), notes }))
        };
        let alone = found(&samples).expect("all that it takes");
        assert_eq!((alone.one, alone.work, alone.further), (4.0, 3.0, 3.0));
        // 64 MiB each: 1 Gbit/s is what 1,000 of them wait for.
        assert!((alone.time(1000.0, 1e6, 1e9) - 536.87).abs() < 0.01);
        samples.push(sample("2", "processor time", "s", 4.5));
        assert_eq!(found(&samples).expect("all").further, 1.5);
        assert!(found(&samples[1..]).is_none());
    }
}
