//! Points in time and spans of time for people.

use chrono::{DateTime, Local, SecondsFormat, Utc};

/// A point in time as `rbd` prints it: local, to the second; nothing for zero.
pub fn local(epoch_seconds: u64) -> String {
    let time = i64::try_from(epoch_seconds).ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    match time {
        Some(time) if epoch_seconds != 0 => {
            time.with_timezone(&Local).format("%Y-%m-%d %H:%M:%S").to_string()
        }
        _ => String::new(),
    }
}

/// A point in time that means the same everywhere: UTC, RFC 3339, to the millisecond.
pub fn universal(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// A span of time in its two largest units.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A number of bytes in the largest binary unit that leaves something before the point.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let exponent = (bytes.ilog2() / 10) as usize;
    let value = bytes as f64 / (1_u64 << (10 * exponent)) as f64;
    format!("{value:.1} {}", UNITS[exponent - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_short() {
        assert_eq!(
            [span(0), span(59), span(61), span(7260), span(90_000)],
            ["0 s", "59 s", "1 min 1 s", "2 h 1 min", "1 d 1 h"]
        );
        assert_eq!(
            [bytes(0), bytes(1023), bytes(1536), bytes(u64::MAX)],
            ["0 B", "1023 B", "1.5 KiB", "16.0 EiB"]
        );
        assert_eq!(local(0), "");
        assert_eq!(local(1_000_000_000).len(), "2001-09-09 01:46:40".len());
        let time = DateTime::from_timestamp(1_000_000_000, 1_000_000).unwrap();
        assert_eq!(universal(time), "2001-09-09T01:46:40.001Z");
    }
}
