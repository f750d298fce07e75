//! What chat templates expect of Python: str(), repr(), json.dumps() and
//! strftime(), bit for bit.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// Python's str() of a value.
pub fn to_str(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_string(),
        None if value.is_undefined() => String::new(),
        None => {
            let mut out = String::new();
            write_repr(&mut out, value);
            out
        }
    }
}

fn write_repr(out: &mut String, value: &Value) {
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::String => write_string_repr(out, value.as_str().unwrap_or_default()),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            write_items(out, value, write_repr);
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            write_entries(out, value, write_repr, write_repr);
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
}

fn write_items(out: &mut String, value: &Value, write: fn(&mut String, &Value)) {
    for (i, item) in value.try_iter().into_iter().flatten().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        write(out, &item);
    }
}

fn write_entries(
    out: &mut String,
    value: &Value,
    write_key: fn(&mut String, &Value),
    write_value: fn(&mut String, &Value),
) {
    for (i, key) in value.try_iter().into_iter().flatten().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        write_key(out, &key);
        out.push_str(": ");
        write_value(out, &value.get_item(&key).unwrap_or_default());
    }
}

fn write_string_repr(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if (c as u32) < 0x20 || (0x7f..0xa0).contains(&(c as u32)) => {
                out.push_str(&format!("\\x{:02x}", c as u32))
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// Integers as they are; floats as Python's repr, which is also JSON's.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(x) = f64::try_from(value.clone()) else {
        return value.to_string();
    };
    let text = format!("{x:?}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(e) => ('-', e),
                None => ('+', exponent),
            };
            let digits = digits.strip_suffix(".0").unwrap_or(digits);
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => text,
    }
}

pub struct JsonStyle {
    pub ensure_ascii: bool,
    /// Spaces a level; None: all on one line.
    pub indent: Option<usize>,
    pub item_separator: String,
    pub key_separator: String,
    pub sort_keys: bool,
}

/// Python's json.dumps.
pub fn to_json(value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let mut out = String::new();
    write_json(&mut out, value, style, 0)?;
    Ok(out)
}

fn write_json(
    out: &mut String,
    value: &Value,
    style: &JsonStyle,
    level: usize,
) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => {
            write_json_string(out, value.as_str().unwrap_or_default(), style.ensure_ascii)
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            write_json_group(out, ('[', ']'), items.len(), style, level, |out, i| {
                write_json(out, &items[i], style, level + 1)
            })?
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sort_keys {
                keys.sort();
            }
            write_json_group(out, ('{', '}'), keys.len(), style, level, |out, i| {
                write_json_string(out, &to_str(&keys[i]), style.ensure_ascii);
                out.push_str(&style.key_separator);
                write_json(out, &value.get_item(&keys[i])?, style, level + 1)
            })?
        }
        kind => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("a value of type {kind} cannot be written as JSON"),
            ))
        }
    }
    Ok(())
}

fn write_json_group(
    out: &mut String,
    brackets: (char, char),
    size: usize,
    style: &JsonStyle,
    level: usize,
    mut write: impl FnMut(&mut String, usize) -> Result<(), Error>,
) -> Result<(), Error> {
    out.push(brackets.0);
    for i in 0..size {
        if i > 0 {
            out.push_str(&style.item_separator);
        }
        new_line(out, style, level + 1);
        write(out, i)?;
    }
    if size > 0 {
        new_line(out, style, level);
    }
    out.push(brackets.1);
    Ok(())
}

fn new_line(out: &mut String, style: &JsonStyle, level: usize) {
    if let Some(indent) = style.indent {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', indent * level));
    }
}

fn write_json_string(out: &mut String, text: &str, ensure_ascii: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || (ensure_ascii && c as u32 > 0x7e) => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

/// Python's strftime of a moment in UTC, C locale. An unknown directive is an
/// error.
pub fn strftime(seconds: i64, format: &str) -> Result<String, Error> {
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next().unwrap_or('%');
        let padded = directive != '-';
        if !padded {
            directive = chars.next().unwrap_or('%');
        }
        out.push_str(&time_field(seconds, directive, padded)?);
    }
    Ok(out)
}

/// Year, month (1..), day (1..), day of the year (1..) of a day number.
fn civil(days: i64) -> (i64, usize, i64, i64) {
    let leap = |y: i64| (y % 4 == 0 && y % 100 != 0) || y % 400 == 0;
    let (mut year, mut rest) = (
        1970 + days.div_euclid(146_097) * 400,
        days.rem_euclid(146_097),
    );
    while rest >= 365 + i64::from(leap(year)) {
        rest -= 365 + i64::from(leap(year));
        year += 1;
    }
    let (day_of_year, mut month) = (rest + 1, 0);
    let lengths = [
        31,
        28 + i64::from(leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    while rest >= lengths[month] {
        rest -= lengths[month];
        month += 1;
    }
    (year, month + 1, rest + 1, day_of_year)
}

fn time_field(seconds: i64, directive: char, padded: bool) -> Result<String, Error> {
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day, day_of_year) = civil(days);
    let weekday = (days + 4).rem_euclid(7) as usize;
    let hour = of_day / 3600;
    let number = |value: i64, width: usize| {
        if padded {
            format!("{value:0width$}")
        } else {
            value.to_string()
        }
    };
    let nested = |format: &str| strftime(seconds, format);
    Ok(match directive {
        'Y' => year.to_string(),
        'y' => number(year.rem_euclid(100), 2),
        'm' => number(month as i64, 2),
        'd' => number(day, 2),
        'e' => format!("{day:>2}"),
        'j' => number(day_of_year, 3),
        'H' => number(hour, 2),
        'I' => number((hour + 11) % 12 + 1, 2),
        'M' => number(of_day / 60 % 60, 2),
        'S' => number(of_day % 60, 2),
        'f' => "000000".to_string(),
        'p' => if hour < 12 { "AM" } else { "PM" }.to_string(),
        'B' => MONTHS[month - 1].to_string(),
        'b' | 'h' => MONTHS[month - 1][..3].to_string(),
        'A' => DAYS[weekday].to_string(),
        'a' => DAYS[weekday][..3].to_string(),
        'w' => weekday.to_string(),
        'u' => ((weekday + 6) % 7 + 1).to_string(),
        's' => seconds.to_string(),
        'Z' => "UTC".to_string(),
        'z' => "+0000".to_string(),
        'F' => nested("%Y-%m-%d")?,
        'T' => nested("%H:%M:%S")?,
        'R' => nested("%H:%M")?,
        'D' | 'x' => nested("%m/%d/%y")?,
        'X' => nested("%H:%M:%S")?,
        'c' => nested("%a %b %e %H:%M:%S %Y")?,
        '%' => "%".to_string(),
        other => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("strftime_now does not know %{other}"),
            ))
        }
    })
}
