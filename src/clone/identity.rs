//! What tells one VM from another: MAC addresses and UUIDs.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use ring::rand::SecureRandom;

/// Whose network cards made-up addresses are for.
#[derive(Clone, Copy)]
pub enum Vendor {
    /// 52:54:00 and three random octets, locally administered, as QEMU's and libvirt's are.
    Qemu,
    /// 00:50:56:00 to 3f, which VMware leaves to addresses that are set by hand.
    Vmware,
    /// 00:16:3e, which Xen leaves to everybody, by 00 to 7f.
    Xen,
}

/// A MAC address of one network card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac([u8; 6]);

impl Mac {
    /// Makes one up.
    pub fn random(vendor: Vendor) -> Result<Self> {
        let [a, b, c] = random()?;
        Ok(Self(match vendor {
            Vendor::Qemu => [0x52, 0x54, 0x00, a, b, c],
            Vendor::Vmware => [0x00, 0x50, 0x56, a & 0x3f, b, c],
            Vendor::Xen => [0x00, 0x16, 0x3e, a & 0x7f, b, c],
        }))
    }

    /// Says whether VMware takes it as one that was set by hand.
    pub fn is_vmware_static(self) -> bool {
        self.0[..3] == [0x00, 0x50, 0x56] && self.0[3] <= 0x3f
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let octets: Vec<&str> = text.split([':', '-']).collect();
        let octet = |text: &&str| match text.len() {
            2 => u8::from_str_radix(text, 16).ok(),
            _ => None,
        };
        let octets: Option<Vec<u8>> = octets.iter().map(octet).collect();
        let octets = octets.and_then(|octets| <[u8; 6]>::try_from(octets).ok());
        let octets = octets.with_context(|| format!("{text:?} is no MAC address"))?;
        if octets[0] & 1 != 0 {
            bail!("{text} is a multicast address: no network card may have it");
        }
        Ok(Self(octets))
    }
}

/// Makes a random UUID (version 4).
pub fn uuid() -> Result<[u8; 16]> {
    let mut bytes: [u8; 16] = random()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(bytes)
}

/// Returns a UUID as RFC 9562 writes it.
pub fn uuid_text(uuid: &[u8; 16]) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// Returns a UUID as VMware writes it: `56 4d … 1a-2b …`.
pub fn uuid_vmware(uuid: &[u8; 16]) -> String {
    let half =
        |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    format!("{}-{}", half(&uuid[..8]), half(&uuid[8..]))
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let random = ring::rand::SystemRandom::new();
    random.fill(&mut bytes).ok().context("the system gives no random numbers")?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_addresses_are_of_one_card_and_in_range() {
        for vendor in [Vendor::Qemu, Vendor::Vmware, Vendor::Xen] {
            let mac = Mac::random(vendor).unwrap();
            assert_eq!(mac.0[0] & 1, 0, "{mac}");
            assert_eq!(mac.to_string().parse::<Mac>().unwrap(), mac);
            assert_eq!(mac.is_vmware_static(), matches!(vendor, Vendor::Vmware));
        }
        assert_eq!(Mac::random(Vendor::Qemu).unwrap().0[0] & 2, 2, "locally administered");
        assert_ne!(Mac::random(Vendor::Qemu).unwrap(), Mac::random(Vendor::Qemu).unwrap());
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in
            ["", "52:54:00:1:2:3", "52:54:00:01:02", "52:54:00:01:02:03:04", "+2:54:00:01:02:0g"]
        {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
        let error = "01:54:00:01:02:03".parse::<Mac>().unwrap_err();
        assert!(error.to_string().contains("multicast"), "{error}");
    }

    #[test]
    fn uuids_are_random_and_have_a_version() {
        let uuid = uuid().unwrap();
        let text = uuid_text(&uuid);
        assert_eq!((text.len(), &text[14..15]), (36, "4"), "{text}");
        assert!("89ab".contains(&text[19..20]), "{text}");
        let vmware = uuid_vmware(&uuid);
        assert_eq!(vmware.replace([' ', '-'], ""), text.replace('-', ""));
        assert_eq!(vmware.find('-'), Some(23));
    }
}
