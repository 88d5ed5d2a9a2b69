//! JSON as it lies in its text: members and elements are slices of it, so that what is passed on keeps every byte.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// The members of `object`, in order: each name as it stands, its quotes included, and each value.
///
/// # Errors
///
/// Returns in which way it is no JSON object.
pub fn members(object: &str) -> serde_json::Result<Vec<(&str, &str)>> {
    let Members(members) = serde_json::from_str(object)?;
    Ok(members)
}

/// The elements of `array`, in order.
///
/// # Errors
///
/// Returns in which way it is no JSON array.
pub fn elements(array: &str) -> serde_json::Result<Vec<&str>> {
    let elements: Vec<&RawValue> = serde_json::from_str(array)?;
    Ok(elements.into_iter().map(RawValue::get).collect())
}

/// The value of the member `name` of `object`, if it is one that has it, and once.
#[must_use]
pub fn member<'a>(object: &'a str, name: &str) -> Option<&'a str> {
    let is_called = |raw: &str| text(raw).is_some_and(|text| text == name);
    let mut named = members(object)
        .ok()?
        .into_iter()
        .filter(|(raw, _)| is_called(raw));
    let (_, value) = named.next()?;
    named.next().is_none().then_some(value)
}

/// The text that `value` stands for, if it is a string.
#[must_use]
pub fn text(value: &str) -> Option<Cow<'_, str>> {
    let inner = value.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        return serde_json::from_str(value).ok().map(Cow::Owned);
    }
    Some(Cow::Borrowed(inner))
}

/// Where `part`, a slice of `whole`, begins in it.
#[must_use]
pub fn offset(whole: &[u8], part: &str) -> usize {
    part.as_ptr().addr() - whole.as_ptr().addr()
}

/// In the order of the text and with its duplicates, neither of which a map would keep.
struct Members<'a>(Vec<(&'a str, &'a str)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((name, value)) = map.next_entry::<&RawValue, &RawValue>()? {
                    members.push((name.get(), value.get()));
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests;
