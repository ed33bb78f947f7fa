//! Numbers in as few bytes as they need (LEB128), and a reader that cannot run past its bytes.

use super::FormatError;

/// Appends a number: seven bits a byte, the lowest first; the top bit says that more follow.
pub fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends a number with a sign: 0, -1, 1, -2, … as 0, 1, 2, 3, …
pub fn put_signed(out: &mut Vec<u8>, number: i64) {
    put(out, ((number << 1) ^ (number >> 63)) as u64);
}

/// Reads on through the bytes of one part.
pub struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// Begins; `what` names the part in errors.
    pub fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    /// Returns how many bytes are left.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// Takes bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], FormatError> {
        let (taken, rest) =
            self.rest.split_at_checked(count).ok_or(FormatError::Cut { what: self.what })?;
        self.rest = rest;
        Ok(taken)
    }

    /// Takes so many bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// Takes a byte.
    pub fn byte(&mut self) -> Result<u8, FormatError> {
        Ok(self.array::<1>()?[0])
    }

    /// Takes 32 bits.
    pub fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Takes 64 bits.
    pub fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Takes what [`put`] wrote; each number has one form, the shortest.
    pub fn varint(&mut self) -> Result<u64, FormatError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if (bits << shift) >> shift != bits || (byte == 0 && shift > 0) {
                break;
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(FormatError::Malformed { what: "a number in a form that is not the shortest" })
    }

    /// Takes what [`put_signed`] wrote.
    pub fn varint_signed(&mut self) -> Result<i64, FormatError> {
        let number = self.varint()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    /// Ends: nothing may be left.
    pub fn end(self) -> Result<(), FormatError> {
        match self.rest {
            [] => Ok(()),
            _ => Err(FormatError::Malformed { what: "bytes behind the end of a part" }),
        }
    }
}
