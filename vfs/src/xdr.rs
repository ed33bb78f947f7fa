//! XDR (RFC 4506), as much of it as NFSv3 uses.
//!
//! The decoder hands out slices of the record that it reads, without copying, and checks every
//! length against its cap and against what is left before anything is allocated.

use bytes::Bytes;

/// Why a record is not the XDR that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum XdrError {
    /// The record ends too early.
    #[error("record ends {missing} bytes too early")]
    Truncated {
        /// How many bytes are missing at least.
        missing: usize,
    },
    /// A length is beyond what the protocol or this program allows.
    #[error("length {length} exceeds {max}")]
    TooLong {
        /// The length found.
        length: usize,
        /// The most that is allowed.
        max: usize,
    },
    /// A discriminant or boolean that the protocol does not know.
    #[error("{value} is no {what}")]
    Unknown {
        /// The value found.
        value: u32,
        /// What it should have been.
        what: &'static str,
    },
}

/// The result of decoding.
pub type XdrResult<T> = Result<T, XdrError>;

/// A value with an XDR form.
pub trait Xdr: Sized {
    /// Appends the value.
    fn encode(&self, to: &mut Encoder);
    /// Takes the value.
    fn decode(from: &mut Decoder) -> XdrResult<Self>;
}

/// Appends XDR to a byte vector.
#[derive(Debug, Default)]
pub struct Encoder {
    buffer: Vec<u8>,
}

impl Encoder {
    /// Makes an empty encoder.
    pub fn new() -> Self {
        Self { buffer: Vec::with_capacity(256) }
    }

    /// Goes on behind what `buffer` holds.
    pub fn from_vec(buffer: Vec<u8>) -> Self {
        Self { buffer }
    }

    /// Returns the bytes.
    pub fn into_vec(self) -> Vec<u8> {
        self.buffer
    }

    /// Returns the number of bytes so far.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Says whether nothing was appended yet.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Appends an unsigned integer.
    pub fn u32(&mut self, value: u32) {
        self.buffer.extend_from_slice(&value.to_be_bytes());
    }

    /// Appends an unsigned hyper integer.
    pub fn u64(&mut self, value: u64) {
        self.buffer.extend_from_slice(&value.to_be_bytes());
    }

    /// Appends a boolean.
    pub fn bool(&mut self, value: bool) {
        self.u32(u32::from(value));
    }

    /// Appends fixed-length opaque data, padded.
    pub fn opaque_fixed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        self.buffer.resize(self.buffer.len() + padding(bytes.len()), 0);
    }

    /// Appends variable-length opaque data or a string, padded.
    pub fn opaque(&mut self, bytes: &[u8]) {
        self.u32(bytes.len() as u32);
        self.opaque_fixed(bytes);
    }

    /// Appends an optional value.
    pub fn option<T: Xdr>(&mut self, value: Option<&T>) {
        self.bool(value.is_some());
        if let Some(value) = value {
            value.encode(self);
        }
    }
}

/// Returns how many bytes pad `length` to a multiple of four.
pub fn padding(length: usize) -> usize {
    length.wrapping_neg() & 3
}

/// Takes XDR from a record.
#[derive(Debug)]
pub struct Decoder {
    record: Bytes,
    position: usize,
}

impl Decoder {
    /// Starts at the beginning of `record`.
    pub fn new(record: Bytes) -> Self {
        Self { record, position: 0 }
    }

    /// Returns how many bytes are left.
    pub fn remaining(&self) -> usize {
        self.record.len() - self.position
    }

    /// Returns how many bytes were taken.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Returns what is left, sharing the record's memory.
    pub fn rest(&self) -> Bytes {
        self.record.slice(self.position..)
    }

    fn take(&mut self, length: usize) -> XdrResult<&[u8]> {
        let left = self.remaining();
        if length > left {
            return Err(XdrError::Truncated { missing: length - left });
        }
        self.position += length;
        Ok(&self.record[self.position - length..self.position])
    }

    fn array<const N: usize>(&mut self) -> XdrResult<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// Takes an unsigned integer.
    pub fn u32(&mut self) -> XdrResult<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// Takes an unsigned hyper integer.
    pub fn u64(&mut self) -> XdrResult<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// Takes a boolean.
    pub fn bool(&mut self) -> XdrResult<bool> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(XdrError::Unknown { value, what: "boolean" }),
        }
    }

    /// Takes `length` bytes of fixed-length opaque data and its padding.
    pub fn opaque_fixed(&mut self, length: usize) -> XdrResult<Bytes> {
        let start = self.position;
        let padded = length.saturating_add(padding(length));
        self.take(padded)?;
        Ok(self.record.slice(start..start + length))
    }

    /// Takes variable-length opaque data or a string of at most `max` bytes.
    pub fn opaque(&mut self, max: usize) -> XdrResult<Bytes> {
        let length = self.u32()? as usize;
        if length > max {
            return Err(XdrError::TooLong { length, max });
        }
        self.opaque_fixed(length)
    }

    /// Takes opaque data of at most `max` bytes at the very end of a record. Missing padding behind
    /// it is forgiven.
    pub fn opaque_last(&mut self, max: usize) -> XdrResult<Bytes> {
        let length = self.u32()? as usize;
        if length > max {
            return Err(XdrError::TooLong { length, max });
        }
        let start = self.position;
        self.take(length)?;
        Ok(self.record.slice(start..start + length))
    }

    /// Takes an optional value.
    pub fn option<T: Xdr>(&mut self) -> XdrResult<Option<T>> {
        self.bool()?.then(|| T::decode(self)).transpose()
    }
}

impl Xdr for u32 {
    fn encode(&self, to: &mut Encoder) {
        to.u32(*self);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        from.u32()
    }
}

impl Xdr for u64 {
    fn encode(&self, to: &mut Encoder) {
        to.u64(*self);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        from.u64()
    }
}

impl Xdr for bool {
    fn encode(&self, to: &mut Encoder) {
        to.bool(*self);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        from.bool()
    }
}

impl Xdr for () {
    fn encode(&self, _to: &mut Encoder) {}
    fn decode(_from: &mut Decoder) -> XdrResult<Self> {
        Ok(())
    }
}

impl<T: Xdr> Xdr for Option<T> {
    fn encode(&self, to: &mut Encoder) {
        to.option(self.as_ref());
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        from.option()
    }
}

impl<A: Xdr, B: Xdr> Xdr for (A, B) {
    fn encode(&self, to: &mut Encoder) {
        self.0.encode(to);
        self.1.encode(to);
    }
    fn decode(from: &mut Decoder) -> XdrResult<Self> {
        Ok((A::decode(from)?, B::decode(from)?))
    }
}

/// Defines a struct whose XDR form is its fields in order.
macro_rules! xdr_struct {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }
        $crate::xdr::xdr_fields!($name { $($field,)* });
    };
}

/// Gives an existing struct the XDR form of its fields in order.
macro_rules! xdr_fields {
    ($name:ident { $($field:ident),* $(,)? }) => {
        impl $crate::xdr::Xdr for $name {
            fn encode(&self, to: &mut $crate::xdr::Encoder) {
                $($crate::xdr::Xdr::encode(&self.$field, to);)*
            }
            fn decode(from: &mut $crate::xdr::Decoder) -> $crate::xdr::XdrResult<Self> {
                Ok(Self { $($field: $crate::xdr::Xdr::decode(from)?,)* })
            }
        }
    };
}

pub(crate) use {xdr_fields, xdr_struct};
