//! Kubernetes quantities as exact numbers.
//!
//! ```
//! # fn main() -> Result<(), api::BadQuantity> {
//! use api::Amount;
//!
//! let memory: Amount = "1.5Gi".parse()?;
//! assert_eq!(memory.units(), 1_610_612_736);
//! let cpu: Amount = "0.25".parse()?;
//! assert_eq!((cpu.millis(), cpu.units()), (250, 1), "parts are rounded up");
//! # Ok(())
//! # }
//! ```

use std::str::FromStr;

/// Nano units in a unit, which is as fine as quantities are.
const NANOS: i128 = 1_000_000_000;
/// The largest quantity, in nano units; what is larger counts as this. Kubernetes' rule.
const MAX_NANOS: i128 = i64::MAX as i128 * NANOS;
/// The most digits that tell one quantity from another; as many as the largest one has.
const MAX_DIGITS: usize = 19;

/// How much of something a quantity such as `500m` or `2Gi` says, without a rounding error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount {
    nanos: i128,
}

/// The text is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a quantity such as 500m, 2 or 1.5Gi")]
pub struct BadQuantity {
    text: String,
}

impl Amount {
    /// In whole units, rounded away from zero.
    pub fn units(self) -> i64 {
        narrow(away_from_zero(self.nanos, NANOS))
    }

    /// In thousandths of a unit, rounded away from zero.
    pub fn millis(self) -> i64 {
        narrow(away_from_zero(self.nanos, NANOS / 1000))
    }
}

impl FromStr for Amount {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, BadQuantity> {
        parse(text).map(|nanos| Self { nanos }).ok_or_else(|| BadQuantity { text: text.to_owned() })
    }
}

impl TryFrom<&k8s_openapi::apimachinery::pkg::api::resource::Quantity> for Amount {
    type Error = BadQuantity;

    fn try_from(
        quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity,
    ) -> Result<Self, BadQuantity> {
        quantity.0.parse()
    }
}

/// What a suffix multiplies with: a power of ten or of two.
enum Factor {
    Ten(i32),
    Two(u32),
}

fn parse(text: &str) -> Option<i128> {
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let number_ends = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(number_ends);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let factor = factor(suffix)?;
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    if whole.len() + fraction.len() > MAX_DIGITS {
        return None;
    }
    let digits = whole.bytes().chain(fraction.bytes());
    let mantissa = digits.fold(0_i128, |sum, digit| sum * 10 + i128::from(digit - b'0'));
    // At most MAX_DIGITS, so it fits.
    let decimals = i32::try_from(fraction.len()).ok()?;
    let nanos = match factor {
        Factor::Ten(exponent) => scaled(mantissa, exponent.checked_add(9 - decimals)?),
        // 19 digits take 64 bits, the largest factor 60: no overflow.
        Factor::Two(bits) => scaled(mantissa << bits, 9 - decimals),
    };
    let nanos = nanos.min(MAX_NANOS);
    Some(if negative { -nanos } else { nanos })
}

fn factor(suffix: &str) -> Option<Factor> {
    Some(match suffix {
        "n" => Factor::Ten(-9),
        "u" => Factor::Ten(-6),
        "m" => Factor::Ten(-3),
        "" => Factor::Ten(0),
        "k" => Factor::Ten(3),
        "M" => Factor::Ten(6),
        "G" => Factor::Ten(9),
        "T" => Factor::Ten(12),
        "P" => Factor::Ten(15),
        "E" => Factor::Ten(18),
        "Ki" => Factor::Two(10),
        "Mi" => Factor::Two(20),
        "Gi" => Factor::Two(30),
        "Ti" => Factor::Two(40),
        "Pi" => Factor::Two(50),
        "Ei" => Factor::Two(60),
        _ => Factor::Ten(suffix.strip_prefix(['e', 'E'])?.parse().ok()?),
    })
}

/// `mantissa`, not negative, times a power of ten, rounded up; the largest number if that is too
/// large.
fn scaled(mantissa: i128, exponent: i32) -> i128 {
    let power = 10_i128.checked_pow(exponent.unsigned_abs());
    match power {
        _ if mantissa == 0 => 0,
        Some(power) if exponent >= 0 => mantissa.saturating_mul(power),
        None if exponent >= 0 => i128::MAX,
        Some(power) => away_from_zero(mantissa, power),
        None => 1,
    }
}

fn away_from_zero(value: i128, by: i128) -> i128 {
    value / by + (value % by).signum()
}

fn narrow(value: i128) -> i64 {
    // No more than MAX_NANOS / NANOS units; only thousandths can be too many.
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_quantities_amount_to() {
        let rows = [
            // text, units, thousandths
            ("0", 0, 0),
            ("1", 1, 1_000),
            ("100m", 1, 100),
            ("1.5", 2, 1_500),
            (".5", 1, 500),
            ("5.", 5, 5_000),
            ("+2", 2, 2_000),
            ("-1500m", -2, -1_500),
            ("0.1", 1, 100),
            ("1n", 1, 1),
            ("1000000u", 1, 1_000),
            ("1k", 1_000, 1_000_000),
            ("1Ki", 1_024, 1_024_000),
            ("1.5Gi", 1_610_612_736, 1_610_612_736_000),
            ("0.1Ki", 103, 102_400),
            ("128974848", 128_974_848, 128_974_848_000),
            ("129e6", 129_000_000, 129_000_000_000),
            ("12E-1", 2, 1_200),
            ("1e-30", 1, 1),
            ("0e99", 0, 0),
            ("123Mi", 128_974_848, 128_974_848_000),
            ("1E", 1_000_000_000_000_000_000, i64::MAX),
            ("7Ei", 8_070_450_532_247_928_832, i64::MAX),
            ("9Ei", i64::MAX, i64::MAX),
            ("1e99", i64::MAX, i64::MAX),
            ("-1e99", -i64::MAX, i64::MIN),
            ("0001.500000000000000000000000000000", 2, 1_500),
            ("1.000000001Gi", 1_073_741_826, 1_073_741_825_074),
        ];
        for (text, units, millis) in rows {
            let amount: Amount = text.parse().unwrap();
            assert_eq!((amount.units(), amount.millis()), (units, millis), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity() {
        for text in [
            "",
            ".",
            "-",
            "m",
            "1 Gi",
            "1gi",
            "1K",
            "1KI",
            "1mi",
            "1.2.3",
            "1e",
            "1e1.5",
            "0x10",
            "--1",
            "Ki",
            "1,5",
            "1e99999999999",
            "ä",
            "12345678901234567890",
        ] {
            assert_eq!(text.parse::<Amount>(), Err(BadQuantity { text: text.to_owned() }));
        }
        assert_eq!(
            "2 GB".parse::<Amount>().unwrap_err().to_string(),
            "\"2 GB\" is not a quantity such as 500m, 2 or 1.5Gi"
        );
    }

    #[test]
    fn the_same_however_it_is_written() {
        for same in [["1", "1000m"], ["1Gi", "1024Mi"], ["0.5Mi", "512Ki"], ["2e3", "2k"]] {
            let [a, b] = same.map(|text| text.parse::<Amount>().unwrap());
            assert_eq!(a, b, "{same:?}");
        }
        assert!("1G".parse::<Amount>().unwrap() < "1Gi".parse().unwrap());
    }
}
