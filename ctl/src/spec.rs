//! What a command is about: pools, namespaces, images, as people name them.
//!
//! | word | names |
//! |---|---|
//! | pool-spec | `POOL[/NAMESPACE]` |
//! | image-spec | `[POOL/[NAMESPACE/]]IMAGE`; where a pool begins and ends is decided from the left, so that an image may have a `/` in its name |
//! | target | `POOL[/]`, `POOL/NAMESPACE/` or `POOL/[NAMESPACE/]IMAGE`, as schedules name their levels |
//!
//! Options (`--pool`, `--namespace`, `--image`) stand in for words; a word then means the next thing that the command
//! wants. No pool means the one that `rbd_default_pool` names, which is known once there is a connection.
//!
//! Reference: `src/tools/rbd/Utils.cc` (`extract_spec`, `get_pool_and_namespace_names`,
//! `get_pool_image_snapshot_names`), `src/tools/rbd/Schedule.cc`.

use std::collections::VecDeque;
use std::fmt;
use std::sync::LazyLock;

use control::Level;
use regex::Regex;

use crate::failure::{EXIT_USAGE, Failure};
use crate::grammar::own::TargetArgs;
use crate::grammar::rbd::{ImageArgs, LevelArgs, PoolArgs, PoolNameArgs};

/// Pool, namespace, image and snapshot, any of which but the image may be absent.
static RELAXED: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"^(?:([^/]+)/(?:([^/@]+)/)?)?([^@]+)(?:@(.+))?$").ok());
/// As [`static@RELAXED`], with no `/` or `@` in any name.
static STRICT: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"^(?:([^/@]+)/(?:([^/@]+)/)?)?([^/@]+)(?:@([^/@]+))?$").ok());
/// Pool, namespace and image of a target.
static TARGET: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"^([^/@]+)(?:/(?:([^/@]+)/)?([^/@]+)?)?$").ok());

/// A pool or namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolSpec {
    /// The pool; the default one when `None`.
    pub pool: Option<String>,
    /// The namespace; empty for the default one.
    pub namespace: String,
}

/// An image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageSpec {
    /// Where it is.
    pub place: PoolSpec,
    /// Its name.
    pub image: String,
}

/// What one of our own commands works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// All images of a pool or namespace.
    Pool(PoolSpec),
    /// One image.
    Image(ImageSpec),
}

/// What a schedule is for: the narrowest of what is named, or everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LevelSpec {
    /// The pool; the default one when only something within it is named.
    pub pool: Option<String>,
    /// The namespace.
    pub namespace: Option<String>,
    /// The image.
    pub image: Option<String>,
}

impl LevelSpec {
    /// The level, where `default_pool` is meant when no pool is named.
    pub fn resolve(&self, default_pool: &str) -> Level {
        let pool = self.pool.as_deref().filter(|pool| !pool.is_empty()).unwrap_or(default_pool);
        match (&self.image, &self.namespace, &self.pool) {
            (Some(image), namespace, _) => {
                Level::image(pool, namespace.as_deref().unwrap_or_default(), image)
            }
            (None, Some(namespace), _) => Level::namespace(pool, namespace),
            (None, None, Some(_)) => Level::pool(pool),
            (None, None, None) => Level::global(),
        }
    }
}

/// The words behind a command, in order.
#[derive(Debug)]
pub struct Positionals(VecDeque<String>);

impl Positionals {
    /// The words that the parser has taken for these arguments.
    pub fn new<const N: usize>(words: [&Option<String>; N]) -> Positionals {
        Positionals(words.into_iter().flatten().cloned().collect())
    }

    /// The next word; an empty one counts as none.
    pub fn take(&mut self) -> Option<String> {
        self.0.pop_front().filter(|word| !word.is_empty())
    }

    /// Makes sure that no word is left.
    pub fn end(self) -> Result<(), Failure> {
        match self.0.front() {
            None => Ok(()),
            Some(word) => Err(Failure::new(
                EXIT_USAGE,
                format!("too many arguments: nothing is left that '{word}' could mean; try --help"),
            )),
        }
    }
}

/// The pool or namespace that a command is about.
pub fn pool(args: &PoolArgs, words: &mut Positionals) -> Result<PoolSpec, Failure> {
    let mut namespace = args.namespace.clone().unwrap_or_default();
    let pool = match &args.pool {
        Some(pool) => Some(pool.clone()),
        None => words.take().map(|word| match word.rsplit_once('/') {
            Some((pool, inner)) => {
                namespace = inner.to_string();
                pool.to_string()
            }
            None => word,
        }),
    };
    checked(PoolSpec { pool, namespace })
}

/// The pool that a command is about.
pub fn pool_name(args: &PoolNameArgs, words: &mut Positionals) -> Result<PoolSpec, Failure> {
    let pool = args.pool.clone().or_else(|| words.take());
    checked(PoolSpec { pool, namespace: String::new() })
}

/// The image that a command is about.
pub fn image(args: &ImageArgs, words: &mut Positionals) -> Result<ImageSpec, Failure> {
    let word = match args.image.clone().filter(|image| !image.is_empty()) {
        Some(image) => Some(image),
        None => words.take(),
    };
    let Some(word) = word else {
        return Err(Failure::invalid("no image was named; name it as [POOL/[NAMESPACE/]]IMAGE"));
    };
    let parts = split(&RELAXED, &word).ok_or_else(|| bad_image(&word))?;
    if parts.snapshot.is_some() {
        let sentence = format!("'{word}' names a snapshot, but mirroring is a matter of whole images");
        return Err(Failure::invalid(sentence));
    }
    let namespace = parts.namespace.or_else(|| args.namespace.clone()).unwrap_or_default();
    check_namespace(&namespace)?;
    Ok(ImageSpec {
        place: PoolSpec { pool: parts.pool.or_else(|| args.pool.clone()), namespace },
        image: parts.name,
    })
}

/// What a schedule is for.
pub fn level(args: &LevelArgs) -> Result<LevelSpec, Failure> {
    let (pool, namespace) = (args.pool.clone(), args.namespace.clone());
    let Some(word) = &args.image else {
        return Ok(LevelSpec { pool, namespace, image: None });
    };
    let parts = split(&STRICT, word).ok_or_else(|| bad_image(word))?;
    if parts.snapshot.is_some() {
        let sentence = format!("'{word}' names a snapshot, but schedules are for whole images");
        return Err(Failure::invalid(sentence));
    }
    for (option, name) in [(&pool, "pool"), (&namespace, "namespace")] {
        if parts.pool.is_some() && option.is_some() {
            let sentence = format!("the {name} is named twice: by --{name} and in '{word}'");
            return Err(Failure::invalid(sentence));
        }
    }
    Ok(LevelSpec {
        pool: pool.or(parts.pool),
        namespace: namespace.or(parts.namespace),
        image: Some(parts.name),
    })
}

/// What one of our own commands works on; `None` when nothing was named.
pub fn target(args: &TargetArgs) -> Result<Option<Target>, Failure> {
    let by_options = args.pool.is_some() || args.namespace.is_some() || args.image.is_some();
    let (pool, namespace, image) = match &args.target {
        Some(word) if by_options => {
            let sentence = format!("'{word}' and --pool, --namespace or --image cannot be given together");
            return Err(Failure::invalid(sentence));
        }
        Some(word) => {
            let parts = TARGET.as_ref().and_then(|pattern| pattern.captures(word));
            let Some(parts) = parts else {
                let sentence = format!(
                    "'{word}' names nothing: a pool is POOL, a namespace POOL/NAMESPACE/, an image POOL/[NAMESPACE/]IMAGE"
                );
                return Err(Failure::invalid(sentence));
            };
            let part = |index: usize| parts.get(index).map(|part| part.as_str().to_string());
            (part(1), part(2), part(3))
        }
        None if !by_options => return Ok(None),
        None => (args.pool.clone(), args.namespace.clone(), args.image.clone()),
    };
    let place = checked(PoolSpec { pool, namespace: namespace.unwrap_or_default() })?;
    Ok(Some(match image {
        Some(image) => Target::Image(ImageSpec { place, image }),
        None => Target::Pool(place),
    }))
}

struct Parts {
    pool: Option<String>,
    namespace: Option<String>,
    name: String,
    snapshot: Option<String>,
}

fn split(pattern: &LazyLock<Option<Regex>>, word: &str) -> Option<Parts> {
    let parts = pattern.as_ref()?.captures(word)?;
    let part = |index: usize| parts.get(index).map(|part| part.as_str().to_string());
    Some(Parts { pool: part(1), namespace: part(2), name: part(3)?, snapshot: part(4) })
}

fn bad_image(word: &str) -> Failure {
    Failure::invalid(format!("'{word}' does not name an image; images are named [POOL/[NAMESPACE/]]IMAGE"))
}

fn checked(spec: PoolSpec) -> Result<PoolSpec, Failure> {
    if let Some(pool) = spec.pool.as_ref().filter(|pool| pool.contains(['/', '@'])) {
        return Err(Failure::invalid(format!("'{pool}' cannot be the name of a pool")));
    }
    check_namespace(&spec.namespace)?;
    Ok(spec)
}

fn check_namespace(namespace: &str) -> Result<(), Failure> {
    if namespace.contains(['/', '@']) {
        return Err(Failure::invalid(format!("'{namespace}' cannot be the name of a namespace")));
    }
    Ok(())
}

impl fmt::Display for PoolSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.pool.as_deref().unwrap_or("(default pool)"))?;
        if self.namespace.is_empty() { Ok(()) } else { write!(f, "/{}", self.namespace) }
    }
}

impl fmt::Display for ImageSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.place, self.image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Positionals {
        Positionals(words.iter().map(|word| word.to_string()).collect())
    }

    fn place(pool: &str, namespace: &str) -> PoolSpec {
        PoolSpec { pool: (!pool.is_empty()).then(|| pool.to_string()), namespace: namespace.into() }
    }

    fn image_of(word: &str) -> Result<ImageSpec, Failure> {
        image(&ImageArgs::default(), &mut words(&[word]))
    }

    #[test]
    fn images_are_read_from_the_left() {
        let expected = [
            ("i", "", "", "i"),
            ("p/i", "p", "", "i"),
            ("p/n/i", "p", "n", "i"),
            ("p/n/i/j", "p", "n", "i/j"),
            ("p//i", "p", "", "/i"),
            ("/i", "", "", "/i"),
        ];
        for (word, pool, namespace, name) in expected {
            let found = image_of(word).unwrap_or_else(|e| panic!("{word}: {e}"));
            assert_eq!(found, ImageSpec { place: place(pool, namespace), image: name.into() }, "{word}");
        }
        for word in ["p/i@s", "@s", "p/i@", ""] {
            assert_eq!(image_of(word).expect_err(word).code(), libc::EINVAL, "{word}");
        }
    }

    #[test]
    fn options_stand_in_for_words() {
        let args = ImageArgs {
            pool: Some("p".into()),
            namespace: Some("n".into()),
            image: Some("i".into()),
            ..ImageArgs::default()
        };
        let mut rest = words(&["snapshot"]);
        assert_eq!(image(&args, &mut rest).unwrap(), ImageSpec { place: place("p", "n"), image: "i".into() });
        assert_eq!(rest.take().as_deref(), Some("snapshot"));
        rest.end().unwrap();

        let in_pool = ImageArgs { pool: Some("p".into()), ..ImageArgs::default() };
        assert_eq!(image(&in_pool, &mut words(&["i"])).unwrap().place, place("p", ""));
        assert_eq!(image(&in_pool, &mut words(&["q/i"])).unwrap().place, place("q", ""));
        assert_eq!(words(&["x"]).end().unwrap_err().code(), EXIT_USAGE);
    }

    #[test]
    fn pools_and_namespaces() {
        let plain = PoolArgs::default();
        assert_eq!(pool(&plain, &mut words(&["p/n"])).unwrap(), place("p", "n"));
        assert_eq!(pool(&plain, &mut words(&["p"])).unwrap(), place("p", ""));
        assert_eq!(pool(&plain, &mut words(&[])).unwrap(), place("", ""));
        assert!(pool(&plain, &mut words(&["p/n/m"])).is_err());
        assert!(pool_name(&PoolNameArgs::default(), &mut words(&["p/n"])).is_err());
        let args = PoolArgs { pool: Some("p".into()), namespace: Some("n@".into()), ..plain };
        assert!(pool(&args, &mut words(&[])).is_err());
    }

    #[test]
    fn levels_of_schedules() {
        let of = |pool: &str, namespace: &str, image: &str| {
            let option = |word: &str| (!word.is_empty()).then(|| word.to_string());
            level(&LevelArgs { pool: option(pool), namespace: option(namespace), image: option(image) })
        };
        let expected = [
            ("", "", "", ""),
            ("p", "", "", "p/"),
            ("p", "n", "", "p/n/"),
            ("", "n", "", "rbd/n/"),
            ("p", "n", "i", "p/n/i"),
            ("", "", "p/i", "p/i"),
            ("", "", "p/n/i", "p/n/i"),
            ("", "", "i", "rbd/i"),
        ];
        for (pool, namespace, image, spec) in expected {
            assert_eq!(of(pool, namespace, image).unwrap().resolve("rbd").spec(), spec);
        }
        assert!(of("p", "", "q/i").is_err());
        assert!(of("", "n", "q/i").is_err());
        assert!(of("", "", "p/i@s").is_err());
        assert!(of("", "", "a/b/c/d").is_err());
    }

    #[test]
    fn targets() {
        let of = |word: &str| target(&TargetArgs { target: Some(word.into()), ..TargetArgs::default() });
        let image = |pool: &str, namespace: &str, name: &str| {
            Some(Target::Image(ImageSpec { place: place(pool, namespace), image: name.into() }))
        };
        assert_eq!(of("p").unwrap(), Some(Target::Pool(place("p", ""))));
        assert_eq!(of("p/").unwrap(), Some(Target::Pool(place("p", ""))));
        assert_eq!(of("p/n/").unwrap(), Some(Target::Pool(place("p", "n"))));
        assert_eq!(of("p/i").unwrap(), image("p", "", "i"));
        assert_eq!(of("p/n/i").unwrap(), image("p", "n", "i"));
        for word in ["", "/i", "p/n/i/j", "p/i@s", "p//i"] {
            assert!(of(word).is_err(), "{word}");
        }
        assert_eq!(target(&TargetArgs::default()).unwrap(), None);
        let both = TargetArgs { target: Some("p".into()), pool: Some("q".into()), ..TargetArgs::default() };
        assert!(target(&both).is_err());
        let by_options = TargetArgs { image: Some("i".into()), ..TargetArgs::default() };
        assert_eq!(target(&by_options).unwrap(), image("", "", "i"));
    }
}
