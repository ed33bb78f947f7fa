//! Durations, rates and shares as people write them.

use std::time::Duration;

fn split(text: &str) -> Result<(f64, &str), String> {
    let text = text.trim();
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let number = number.parse().map_err(|_| format!("{text:?} does not begin with a number"))?;
    Ok((number, unit.trim()))
}

/// Parses a time: `32ms`, `1.5s`, `250us`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text)?;
    let factor = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return Err(format!("{text:?}: a time ends in us, ms or s")),
    };
    Duration::try_from_secs_f64(number * factor).map_err(|error| error.to_string())
}

/// Parses a rate in bits a second, by powers of ten as links are sold: `1gbit`, `20mbit`. Zero is
/// `unlimited`.
pub fn rate(text: &str) -> Result<u64, String> {
    if text == "unlimited" {
        return Ok(0);
    }
    let (number, unit) = split(text)?;
    let factor = match unit {
        "bit" => 1e0,
        "kbit" => 1e3,
        "mbit" => 1e6,
        "gbit" => 1e9,
        _ => return Err(format!("{text:?}: a rate ends in bit, kbit, mbit or gbit")),
    };
    match (number * factor) as u64 {
        0 => Err(format!("{text:?} lets nothing through (no limit is written unlimited)")),
        rate => Ok(rate),
    }
}

/// Parses a number of bytes: `512KiB`, `4MiB`, `1000000`.
pub fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let factor = match unit {
        "" | "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err(format!("{text:?}: a size ends in B, KiB, MiB or GiB")),
    };
    Ok((number * factor) as u64)
}

/// Parses a share of all packets: `0.5%`, `0.005`.
pub fn share(text: &str) -> Result<f64, String> {
    let (number, unit) = split(text)?;
    let share = match unit {
        "%" => number / 100.0,
        "" => number,
        _ => return Err(format!("{text:?}: a share is a number or ends in %")),
    };
    if share < 1.0 { Ok(share) } else { Err(format!("{text:?}: not below one")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_understood() {
        assert_eq!(duration("32ms"), Ok(Duration::from_millis(32)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(rate("1gbit"), Ok(1_000_000_000));
        assert_eq!(rate("2.5mbit"), Ok(2_500_000));
        assert_eq!(rate("unlimited"), Ok(0));
        assert_eq!(bytes("4MiB"), Ok(4 << 20));
        assert_eq!(share("0.5%"), Ok(0.005));
        assert_eq!(share("0.25"), Ok(0.25));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "ms", "32", "32 parsecs", "1.2.3s", "-1s"] {
            assert!(duration(text).is_err(), "{text}");
        }
        for text in ["", "0gbit", "1", "1gb", "1 GB/s"] {
            assert!(rate(text).is_err(), "{text}");
        }
        assert!(bytes("4MB").is_err());
        assert!(share("100%").is_err());
        assert!(share("1").is_err());
    }
}
