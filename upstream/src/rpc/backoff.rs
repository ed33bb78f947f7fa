//! Pauses that double, with jitter: the stripes of many clients must not come back in step.

use std::time::Duration;

pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, next: min }
    }

    /// Begins anew: it has worked in between.
    pub fn reset(&mut self) {
        self.next = self.min;
    }

    /// Goes straight to the longest pause: trying will not help.
    pub fn give_up_hope(&mut self) {
        self.next = self.max;
    }

    /// Returns the next pause: between half and all of its nominal length.
    pub fn next_pause(&mut self) -> Duration {
        let nominal = self.next.min(self.max);
        self.next = (nominal * 2).min(self.max);
        let part = (super::random_u64() % 1024) as u32;
        nominal / 2 + nominal / 2 * part / 1024
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_limit_and_begin_anew() {
        let (min, max) = (Duration::from_millis(100), Duration::from_millis(500));
        let mut backoff = Backoff::new(min, max);
        for nominal in [100, 200, 400, 500, 500, 500] {
            let nominal = Duration::from_millis(nominal);
            let pause = backoff.next_pause();
            assert!(pause >= nominal / 2 && pause <= nominal, "{pause:?} of {nominal:?}");
        }
        backoff.reset();
        assert!(backoff.next_pause() <= min);
    }
}
