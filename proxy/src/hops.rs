//! Which standing proxies lie behind this one: so that none becomes its own upstream.

use gridvfs_vfs::ext::{HOP_ID_BYTES, HOPS_MAX, Hop, Hops};
use parking_lot::RwLock;

/// This proxy and what is known of those behind it.
#[derive(Default)]
pub struct HopBoard {
    own: Option<Hop>,
    behind: RwLock<Hops>,
}

/// Why an upstream is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HopError {
    /// The files would be asked for in a circle.
    #[error("the cascade is a loop: {0}")]
    Loop(String),
    /// There are more proxies in series than make sense.
    #[error("more than {HOPS_MAX} proxies in series: {0}")]
    TooMany(String),
}

impl HopBoard {
    /// Makes the board of a standing proxy. That of a session's daemon is empty: it is an end.
    pub fn new(id: [u8; HOP_ID_BYTES], name: String) -> Self {
        Self { own: Some(Hop { id, name }), behind: RwLock::default() }
    }

    /// Says whether an upstream that answers this may be one.
    pub fn check(&self, answer: &Hops) -> Result<(), HopError> {
        let Some(own) = &self.own else { return Ok(()) };
        let way = answer.behind(own.clone());
        match answer.has(&own.id) {
            true => Err(HopError::Loop(way.to_text())),
            false if way.0.len() > HOPS_MAX => Err(HopError::TooMany(way.to_text())),
            false => Ok(()),
        }
    }

    /// Takes what the upstreams answered, all of it: of what it says, this proxy must not be a part.
    pub fn learn(&self, answers: &[Hops]) -> Result<(), HopError> {
        let mut all = Hops::default();
        for answer in answers {
            self.check(answer)?;
            for hop in &answer.0 {
                if !all.has(&hop.id) && all.0.len() < HOPS_MAX {
                    all.0.push(hop.clone());
                }
            }
        }
        *self.behind.write() = all;
        Ok(())
    }

    /// Returns what a client is told: this proxy and those behind it.
    pub fn told(&self) -> Hops {
        match &self.own {
            Some(own) => self.behind.read().behind(own.clone()),
            None => Hops::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board(number: u8) -> HopBoard {
        HopBoard::new([number; HOP_ID_BYTES], format!("p{number}"))
    }

    #[test]
    fn a_loop_is_named_and_what_was_known_before_stays() {
        let (a, b, c) = (board(1), board(2), board(3));
        c.learn(&[]).expect("an end");
        b.learn(&[c.told(), HopBoard::default().told()]).expect("a line");
        a.learn(&[b.told()]).expect("a line");
        assert_eq!(a.told().to_text(), "p1 → p2 → p3");
        let error = c.learn(&[a.told()]).expect_err("a loop");
        assert_eq!(error, HopError::Loop("p3 → p1 → p2 → p3".into()));
        assert_eq!(c.told().to_text(), "p3");
        assert!(matches!(c.learn(&[c.told()]), Err(HopError::Loop(_))), "itself");
    }

    #[test]
    fn a_series_has_an_end() {
        let mut last = Hops::default();
        for number in 0..HOPS_MAX as u8 {
            let next = board(number);
            next.learn(&[last]).expect("not too many yet");
            last = next.told();
        }
        assert!(matches!(board(99).learn(&[last]), Err(HopError::TooMany(_))));
    }
}
