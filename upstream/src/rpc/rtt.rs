//! Round-trip times by Jacobson's estimate (RFC 6298), for each class of calls.

use std::time::Duration;

use super::CallClass;

/// The estimate of one class.
#[derive(Clone, Copy, Debug, Default)]
struct Estimate {
    smoothed: Option<Duration>,
    variation: Duration,
}

/// The estimates of a session.
#[derive(Debug, Default)]
pub(super) struct RoundTrips {
    classes: [Estimate; 4],
}

impl RoundTrips {
    /// Adds the time of a call that was sent once (a reply to a call sent twice could be to
    /// either: Karn's rule). Returns the smoothed time.
    pub fn add(&mut self, class: CallClass, time: Duration) -> Duration {
        let estimate = &mut self.classes[class as usize];
        let smoothed = match estimate.smoothed {
            None => {
                estimate.variation = time / 2;
                time
            }
            Some(smoothed) => {
                estimate.variation = (estimate.variation * 3 + smoothed.abs_diff(time)) / 4;
                (smoothed * 7 + time) / 8
            }
        };
        estimate.smoothed = Some(smoothed);
        smoothed
    }

    /// Returns the smoothed time of small calls.
    pub fn small(&self) -> Option<Duration> {
        self.classes[CallClass::Small as usize].smoothed
    }

    /// Returns how long an answer may take before the call counts as lost.
    pub fn limit(&self, class: CallClass, min: Duration, max: Duration) -> Duration {
        let estimate = &self.classes[class as usize];
        let limit = estimate.smoothed.unwrap_or_default() + estimate.variation * 4;
        limit.min(max).max(min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_answers_of_a_class_raise_its_limit_alone() {
        let (min, max) = (Duration::from_secs(1), Duration::from_secs(100));
        let mut trips = RoundTrips::default();
        assert_eq!(trips.limit(CallClass::Read, min, max), min);
        for _ in 0..50 {
            trips.add(CallClass::Read, Duration::from_secs(20));
            trips.add(CallClass::Small, Duration::from_millis(30));
        }
        let limit = trips.limit(CallClass::Read, min, max);
        assert!(limit >= Duration::from_secs(20) && limit < Duration::from_secs(25), "{limit:?}");
        assert_eq!(trips.limit(CallClass::Small, min, max), min);
        trips.add(CallClass::Read, Duration::from_secs(2000));
        assert_eq!(trips.limit(CallClass::Read, min, max), max);
    }
}
