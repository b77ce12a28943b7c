//! The options of Ceph that steer the daemon, typed, with Ceph's names and defaults.
//!
//! They come from wherever librados got them: command line, configuration file, or the monitors' configuration store.
//! Reference: `src/common/options/rbd-mirror.yaml.in`, `rbd.yaml.in`.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use deep_copy::map_trust::Trust;
use rbd::pool_metadata::OPTION_PREFIX;

/// The one option that librados does not know.
pub const OBJECT_MAP_TRUST: &str = "rbd_mirror_object_map_trust";

/// What was configured.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// `rbd_mirror_leader_heartbeat_interval`: how often a leader tells the others that it lives.
    pub leader_heartbeat_interval: Duration,
    /// `rbd_mirror_concurrent_image_syncs`: first copies and resyncs at once in a pool.
    pub concurrent_image_syncs: usize,
    /// `rbd_mirror_concurrent_image_deletions`: removals of local images at once in a pool.
    pub concurrent_image_deletions: usize,
    /// `rbd_mirror_pool_replayers_refresh_interval`: how often everything is looked at again, whether or not anything
    /// was announced.
    pub refresh_interval: Duration,
    /// `rbd_mirror_image_state_check_interval`: how often a stopped image is looked at again.
    pub image_state_check_interval: Duration,
    /// `rbd_mirroring_delete_delay`: how long a removed image stays in the trash.
    pub delete_delay: Duration,
    /// `rbd_mirroring_max_mirroring_snapshots`: mirror-snapshots kept per image.
    pub max_mirroring_snapshots: u64,
    /// `rbd_mirror_memory_target`: how much memory the daemon may take, in bytes.
    pub memory_target_bytes: u64,
    /// `rbd_mirror_object_map_trust`: how far the object maps of primaries are believed. An option of this program alone.
    pub object_map_trust: Trust,
    /// Of images that are mirrored in journal mode.
    pub journal: JournalSettings,
}

/// Options of journal mode.
#[derive(Debug, Clone, PartialEq)]
pub struct JournalSettings {
    /// `rbd_mirror_journal_commit_age`: how often the commit position is stored while entries are replayed.
    pub commit_age: Duration,
    /// `rbd_mirror_journal_poll_age`: the pause between polls of a journal that has had no entry for a minute or two; they
    /// grow longer the longer it has none.
    pub poll_age: Duration,
    /// `rbd_mirroring_replay_delay`: entries are replayed so long after they were written.
    pub replay_delay: Duration,
    /// `rbd_mirroring_resync_after_disconnect`: a copy that was away for too long is brought in line without being
    /// asked.
    pub resync_after_disconnect: bool,
    /// `rbd_journal_order`: data objects of the journals of new images have 2^order bytes.
    pub order: u8,
    /// `rbd_journal_splay_width`: so many data objects of them are written in turn.
    pub splay_width: u8,
    /// `rbd_journal_pool`: the pool of these data objects; empty for that of the image.
    pub pool: String,
}

impl JournalSettings {
    /// The same for an image, whose metadata overrides some of them (`rbd config image set`) before those of its pool do
    /// (`rbd config pool set`). Both are those of the copy: its image gets what is set for the primary's, its pool does not.
    /// As in librbd, a value that makes no sense is passed over.
    pub fn of_image(
        &self,
        image: &BTreeMap<String, Bytes>,
        pool: &BTreeMap<String, Bytes>,
    ) -> JournalSettings {
        self.overridden(pool).overridden(image)
    }

    fn overridden(&self, metadata: &BTreeMap<String, Bytes>) -> JournalSettings {
        let source = of_image(metadata);
        let delay = source.value("rbd_mirroring_replay_delay", self.replay_delay.as_secs());
        JournalSettings {
            replay_delay: Duration::from_secs(delay),
            resync_after_disconnect: source
                .flag("rbd_mirroring_resync_after_disconnect", self.resync_after_disconnect),
            ..self.clone()
        }
    }
}

/// How far the object maps of a primary are believed: as its metadata say, else those of the copy's pool, else `default`. The
/// key is the option's name as it is: librbd refuses to set options that it does not know under the prefix of options.
pub fn object_map_trust(
    image: &BTreeMap<String, Bytes>,
    pool: &BTreeMap<String, Bytes>,
    default: Trust,
) -> Trust {
    let set = |metadata: &BTreeMap<String, Bytes>, default| {
        let value = metadata.get(OBJECT_MAP_TRUST).map(|value| String::from_utf8_lossy(value).into_owned());
        Source { lookup: |_: &str| value.clone() }.value(OBJECT_MAP_TRUST, default)
    };
    set(image, set(pool, default))
}

/// The options that an image's metadata overrides (`rbd config image set`, `rbd image-meta set`).
fn of_image(metadata: &BTreeMap<String, Bytes>) -> Source<impl Fn(&str) -> Option<String>> {
    let lookup = |option: &str| {
        let value = metadata.get(&format!("conf_{option}"))?;
        Some(String::from_utf8_lossy(value).into_owned())
    };
    Source { lookup }
}

/// `rbd_mirroring_delete_delay` of an image: of its metadata, else of those of its pool, else `default`. As in librbd, one
/// that makes no sense is passed over.
pub fn delete_delay(
    image: &BTreeMap<String, Bytes>,
    pool: &BTreeMap<String, Bytes>,
    default: Duration,
) -> Duration {
    let key = format!("{OPTION_PREFIX}rbd_mirroring_delete_delay");
    let set = [("image", image), ("pool", pool)].into_iter().find_map(|(what, metadata)| {
        let text = String::from_utf8_lossy(metadata.get(&key)?);
        let seconds = text.trim().parse::<u64>();
        if seconds.is_err() {
            tracing::warn!(
                "option rbd_mirroring_delete_delay of the {what} is set to '{text}': not a number of seconds"
            );
        }
        seconds.ok()
    });
    set.map_or(default, Duration::from_secs)
}

impl Settings {
    /// Reads the options through `lookup`, which knows an option's value by its name. Values that make no sense are
    /// logged and replaced by the default.
    pub fn read(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let source = Source { lookup };
        Settings {
            leader_heartbeat_interval: source.seconds("rbd_mirror_leader_heartbeat_interval", 5.0),
            concurrent_image_syncs: source.value("rbd_mirror_concurrent_image_syncs", 5),
            concurrent_image_deletions: source.value("rbd_mirror_concurrent_image_deletions", 1),
            refresh_interval: source.seconds("rbd_mirror_pool_replayers_refresh_interval", 30.0),
            image_state_check_interval: source.seconds("rbd_mirror_image_state_check_interval", 30.0),
            delete_delay: source.seconds("rbd_mirroring_delete_delay", 0.0),
            max_mirroring_snapshots: source.value("rbd_mirroring_max_mirroring_snapshots", 5),
            memory_target_bytes: source.value("rbd_mirror_memory_target", 4 << 30),
            object_map_trust: source.value(OBJECT_MAP_TRUST, Trust::default()),
            journal: JournalSettings {
                commit_age: source.seconds("rbd_mirror_journal_commit_age", 5.0),
                poll_age: source.seconds("rbd_mirror_journal_poll_age", 5.0),
                replay_delay: Duration::from_secs(source.value("rbd_mirroring_replay_delay", 0)),
                resync_after_disconnect: source.flag("rbd_mirroring_resync_after_disconnect", false),
                order: source.value("rbd_journal_order", 24),
                splay_width: source.value("rbd_journal_splay_width", 4),
                pool: (source.lookup)("rbd_journal_pool").unwrap_or_default(),
            },
        }
    }
}

struct Source<F> {
    lookup: F,
}

impl<F: Fn(&str) -> Option<String>> Source<F> {
    fn value<T: FromStr + Copy + std::fmt::Display>(&self, option: &str, default: T) -> T {
        match (self.lookup)(option) {
            None => default,
            Some(text) => text.trim().parse().unwrap_or_else(|_| {
                tracing::warn!("option {option} is set to '{text}', which is not valid; using {default}");
                default
            }),
        }
    }

    /// True or false, in the words that Ceph takes for it, or a number.
    fn flag(&self, option: &str, default: bool) -> bool {
        let text = (self.lookup)(option).map(|text| text.trim().to_lowercase());
        match text.as_deref() {
            Some("true") => true,
            Some("false") => false,
            Some(text) if text.parse::<i64>().is_ok() => text.parse() != Ok(0_i64),
            _ => self.value(option, default),
        }
    }

    fn seconds(&self, option: &str, default: f64) -> Duration {
        let seconds: f64 = self.value(option, default);
        // More than a century is a mistake, and cannot be reckoned with everywhere.
        let valid =
            Duration::try_from_secs_f64(seconds).ok().filter(|time| time.as_secs() <= u32::MAX.into());
        valid.unwrap_or_else(|| {
            tracing::warn!(
                "option {option} is set to {seconds} seconds, which is not valid; using {default}"
            );
            Duration::from_secs_f64(default)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_cephs_and_nonsense_falls_back_to_them() {
        let defaults = Settings::read(|_| None);
        assert_eq!(defaults.leader_heartbeat_interval, Duration::from_secs(5));
        assert_eq!(defaults.memory_target_bytes, 4294967296);
        // A pool may be called anything.
        let nonsense = |name: &str| (name != "rbd_journal_pool").then(|| "nonsense".to_string());
        assert_eq!(Settings::read(nonsense), defaults);
        assert_eq!(Settings::read(|_| Some("-1".into())).delete_delay, Duration::ZERO);
    }

    #[test]
    fn an_image_may_override_the_options_of_journal_mode() {
        let settings = Settings::read(|_| None).journal;
        let metadata = [("conf_rbd_mirroring_replay_delay", "600"), ("rbd_mirroring_replay_delay", "7")];
        let metadata = metadata.map(|(key, value)| (key.to_string(), Bytes::from(value))).into();
        let expected = JournalSettings { replay_delay: Duration::from_secs(600), ..settings.clone() };
        assert_eq!(settings.of_image(&metadata, &BTreeMap::new()), expected);
    }

    #[test]
    fn a_pool_overrides_the_options_of_journal_mode_and_an_image_those_of_its_pool() {
        let set = |options: &[(&str, &str)]| -> BTreeMap<String, Bytes> {
            let entries = options.iter();
            entries.map(|(key, value)| (format!("conf_{key}"), Bytes::from(value.to_string()))).collect()
        };
        let (delay, resync) = ("rbd_mirroring_replay_delay", "rbd_mirroring_resync_after_disconnect");
        let settings = Settings::read(|name| (name == delay).then(|| "7".into())).journal;
        let of = |image: &[(&str, &str)], pool: &[(&str, &str)]| {
            let of_image = settings.of_image(&set(image), &set(pool));
            (of_image.replay_delay.as_secs(), of_image.resync_after_disconnect)
        };
        assert_eq!(of(&[], &[]), (7, false));
        assert_eq!(of(&[], &[(delay, "600"), (resync, "true")]), (600, true));
        assert_eq!(of(&[(delay, "0"), (resync, "0")], &[(delay, "600"), (resync, "1")]), (0, false));
        assert_eq!(
            of(&[(delay, "soon"), (resync, "perhaps")], &[(delay, "600"), (resync, "1")]),
            (600, true)
        );
    }

    #[test]
    fn trust_in_object_maps_is_a_word() {
        let set = |value: &'static str| {
            Settings::read(move |name| (name == OBJECT_MAP_TRUST).then(|| value.into()))
        };
        assert_eq!(set("never").object_map_trust, Trust::Never);
        assert_eq!(set("sometimes").object_map_trust, Trust::Auto);
        let of = |value: &'static str| [(OBJECT_MAP_TRUST.to_string(), Bytes::from(value))].into();
        assert_eq!(object_map_trust(&of("always"), &of("never"), Trust::Auto), Trust::Always);
        assert_eq!(object_map_trust(&of("perhaps"), &of("never"), Trust::Auto), Trust::Never);
        assert_eq!(object_map_trust(&BTreeMap::new(), &BTreeMap::new(), Trust::Always), Trust::Always);
    }

    #[test]
    fn the_delay_of_an_image_comes_before_that_of_its_pool() {
        let set = |value: &str| {
            let key = "conf_rbd_mirroring_delete_delay".to_string();
            BTreeMap::from([(key, Bytes::copy_from_slice(value.as_bytes()))])
        };
        let (none, default) = (BTreeMap::new(), Duration::from_secs(9));
        let delay =
            |image: &BTreeMap<_, _>, pool: &BTreeMap<_, _>| delete_delay(image, pool, default).as_secs();
        assert_eq!(delay(&none, &none), 9);
        assert_eq!(delay(&none, &set("3600")), 3600);
        assert_eq!(delay(&set("0"), &set("3600")), 0);
        assert_eq!(delay(&set("soon"), &set("3600")), 3600);
    }

    #[test]
    fn values_are_read_by_name() {
        let one = |name: &str| (name == "rbd_mirror_leader_heartbeat_interval").then(|| "0.5".to_string());
        assert_eq!(Settings::read(one).leader_heartbeat_interval, Duration::from_millis(500));
    }
}
