//! HOPS: the standing proxies between a client and its files, so that none is its own upstream.

use bytes::Bytes;

use crate::xdr::{Decoder, Encoder, Xdr, XdrError, XdrResult};

/// The length of a hop's number, in bytes.
pub const HOP_ID_BYTES: usize = 16;
/// The most hops in series. Each costs a round trip; more than a few are a mistake.
pub const HOPS_MAX: usize = 16;
/// The longest name of a hop, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// A standing proxy on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// What tells it from all others, at random.
    pub id: [u8; HOP_ID_BYTES],
    /// Its name, for people.
    pub name: String,
}

/// The hops on the way, the nearest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hops(pub Vec<Hop>);

impl Hops {
    /// Returns the hops as text: `lan@near → state@far`.
    pub fn to_text(&self) -> String {
        let names: Vec<&str> = self.0.iter().map(|hop| &*hop.name).collect();
        names.join(" → ")
    }

    /// Puts a hop in front of those behind it.
    pub fn behind(&self, hop: Hop) -> Self {
        Self(std::iter::once(hop).chain(self.0.iter().cloned()).collect())
    }

    /// Says whether a hop is among them.
    pub fn has(&self, id: &[u8; HOP_ID_BYTES]) -> bool {
        self.0.iter().any(|hop| hop.id == *id)
    }
}

impl Xdr for Hops {
    fn encode(&self, to: &mut Encoder) {
        to.u32(self.0.len() as u32);
        for hop in &self.0 {
            to.opaque_fixed(&hop.id);
            let name = hop.name.as_bytes();
            to.opaque(&name[..name.len().min(NAME_BYTES_MAX)]);
        }
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        let length = from.u32()? as usize;
        // One more than may be, so that a proxy can tell that it would be too many.
        if length > HOPS_MAX + 1 {
            return Err(XdrError::TooLong { length, max: HOPS_MAX + 1 });
        }
        let hop = |from: &mut Decoder| {
            let bytes: Bytes = from.opaque_fixed(HOP_ID_BYTES)?;
            let mut id = [0; HOP_ID_BYTES];
            id.copy_from_slice(&bytes);
            let name = from.opaque(NAME_BYTES_MAX)?;
            // It is shown to people.
            let name = String::from_utf8_lossy(&name).replace(char::is_control, "?");
            Ok(Hop { id, name })
        };
        (0..length).map(|_| hop(from)).collect::<XdrResult<_>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(number: u8) -> Hop {
        Hop { id: [number; HOP_ID_BYTES], name: format!("proxy{number}@host") }
    }

    #[test]
    fn hops_come_back_and_have_a_limit() {
        let hops = Hops(vec![hop(1), hop(2)]).behind(hop(0));
        assert_eq!(hops.to_text(), "proxy0@host → proxy1@host → proxy2@host");
        assert!(hops.has(&[2; HOP_ID_BYTES]) && !hops.has(&[3; HOP_ID_BYTES]));
        let encoded = |hops: &Hops| {
            let mut encoder = Encoder::new();
            hops.encode(&mut encoder);
            Decoder::new(encoder.into_vec().into())
        };
        assert_eq!(Hops::decode(&mut encoded(&hops)), Ok(hops));
        let many = Hops((0..HOPS_MAX as u8 + 2).map(hop).collect());
        assert!(matches!(Hops::decode(&mut encoded(&many)), Err(XdrError::TooLong { .. })));
    }
}
