//! Every command that changes something, right and wrong, on twin pools: one is changed by the stock `rbd`, the other by
//! ours. Both must answer the same and end with the same code. (That the same is stored, `control` shows.)

use anyhow::{Context, Result, ensure};
use tests::Cluster;

use crate::world::{Run, World, ours, run, run_ours, run_stock, stock};

const UUID: &str = "01234567-89ab-cdef-0123-456789abcdef";

/// Two pools of one cluster in the same state.
struct Twins<'a> {
    cluster: &'a Cluster,
    stock: String,
    ours: String,
    /// What stands for `PEER`: the uuids that the two answered with.
    peers: (String, String),
}

impl Twins<'_> {
    /// Runs `line` with both. `POOL` stands for each one's pool, `PEER` for its newest peer.
    async fn both(&mut self, line: &str) -> Result<i32> {
        let words = |pool: &str, peer: &str| -> Vec<String> {
            line.split_whitespace().map(|word| word.replace("POOL", pool).replace("PEER", peer)).collect()
        };
        let (theirs, mine) = (words(&self.stock, &self.peers.0), words(&self.ours, &self.peers.1));
        let refs = |words: &'_ [String]| words.iter().map(String::as_str).collect::<Vec<_>>().join("\u{1f}");
        let (theirs, mine) = (refs(&theirs), refs(&mine));
        let theirs = run(stock(self.cluster, &theirs.split('\u{1f}').collect::<Vec<_>>())).await?;
        let mine = run(ours(self.cluster, &mine.split('\u{1f}').collect::<Vec<_>>())).await?;
        if line.contains("peer add") && theirs.code == Some(0) {
            self.peers = (theirs.stdout.trim().to_string(), mine.stdout.trim().to_string());
        }
        let (plain_theirs, plain_mine) =
            (normal(&theirs.stdout, &self.stock), normal(&mine.stdout, &self.ours));
        ensure!(
            theirs.code == mine.code && plain_theirs == plain_mine,
            "`{line}`: stock {:?} {:?} ({}), ours {:?} {:?} ({})",
            theirs.code,
            theirs.stdout,
            theirs.stderr.trim(),
            mine.code,
            mine.stdout,
            mine.stderr.trim()
        );
        expect_sentence(line, &mine)?;
        theirs.code.context("it was killed")
    }

    async fn all(&mut self, lines: &[&str]) -> Result<()> {
        for line in lines {
            self.both(line).await?;
        }
        Ok(())
    }

    /// As [`Twins::all`], and none of them may succeed.
    async fn refused(&mut self, lines: &[&str]) -> Result<()> {
        for line in lines {
            ensure!(self.both(line).await? != 0, "`{line}` is done");
        }
        Ok(())
    }
}

/// A failure is told in a sentence, a success in none.
fn expect_sentence(line: &str, run: &Run) -> Result<()> {
    let lines: Vec<&str> = run.stderr.lines().collect();
    match run.code {
        Some(0) => ensure!(lines.is_empty(), "`{line}` complains: {}", run.stderr),
        _ => {
            let first = lines.first().context("it fails without a word")?;
            let sentence = first.strip_prefix("rbd-mirrorctl: ").context("it fails in another's name")?;
            ensure!(sentence.split(' ').count() > 3, "`{line}`: {sentence}");
        }
    }
    Ok(())
}

/// Standard output without what differs from one pool to the other: names, uuids, ids of snapshots.
fn normal(stdout: &str, pool: &str) -> String {
    let differing = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?m)^Snapshot ID: [0-9]+$";
    let differing = regex::Regex::new(differing).expect("a pattern");
    differing.replace_all(&stdout.replace(pool, "POOL"), "N").into_owned()
}

pub async fn every_action_and_every_refusal(world: &World) -> Result<()> {
    let cluster = world.a();
    let (stock, ours) = (world.new_pool().await?, world.new_pool().await?);
    for pool in [&stock, &ours] {
        cluster.rbd(&["namespace", "create", &format!("{pool}/n")]).await?;
        for image in ["i", "j", "n/i"] {
            cluster.create_image(&format!("{pool}/{image}"), 4 << 20, &[]).await?;
        }
        cluster.create_image(&format!("{pool}/bare"), 4 << 20, &["--image-feature", "layering"]).await?;
    }
    let mut twins = Twins { cluster, stock, ours, peers: Default::default() };
    pools(&mut twins).await.context("pools")?;
    peers(&mut twins).await.context("peers")?;
    images(&mut twins).await.context("images")?;
    whole_pools(&mut twins).await.context("whole pools")?;
    let (stock, ours) = (twins.stock, twins.ours);
    world.strike(&stock).await?;
    world.strike(&ours).await
}

async fn pools(twins: &mut Twins<'_>) -> Result<()> {
    twins
        .refused(&[
            "mirror pool enable POOL",
            "mirror pool enable POOL every",
            "mirror pool enable --pool POOL",
            "mirror pool enable POOL/absent image",
            "mirror pool enable POOL/n/m image",
            "mirror pool enable absent-pool image",
            "mirror pool status POOL",
            "mirror pool promote POOL",
            "mirror pool demote POOL/n",
            "mirror pool peer bootstrap create POOL",
            "mirror pool peer add POOL client.x@far",
            &format!("mirror pool peer remove POOL {UUID}"),
            &format!("mirror pool peer set POOL {UUID} client client.x"),
            "mirror image enable POOL/i snapshot",
            "mirror image status POOL/i",
            "mirror image snapshot POOL/i",
            "mirror image promote POOL/i",
            "mirror image demote POOL/i",
            "mirror image resync POOL/i",
        ])
        .await?;
    twins
        .all(&[
            "mirror pool disable POOL",
            "mirror image disable POOL/i",
            "mirror pool enable POOL image --site-name site-a",
            "mirror pool enable POOL image --site-name site-a",
            "mirror pool enable POOL image",
            "mirror pool enable --site-name=site-a --pool POOL image",
            "mirror pool enable POOL pool",
            "mirror pool enable POOL pool",
            "mirror pool enable POOL image",
            "mirror pool disable POOL",
            "mirror pool enable POOL pool",
            "mirror pool disable --pool POOL",
            "mirror pool enable POOL image",
            "mirror pool enable POOL/n image",
            "mirror pool enable --pool POOL --namespace n image",
            "mirror pool info POOL",
            "mirror pool info POOL/n",
        ])
        .await
}

async fn peers(twins: &mut Twins<'_>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let key = folder.path().join("key");
    std::fs::write(&key, "AQBsecretkey==\nsecond line\n")?;
    let key = key.display();
    twins
        .refused(&[
            "mirror pool peer add POOL",
            "mirror pool peer add POOL client.x@",
            "mirror pool peer add POOL x@far",
            "mirror pool peer add POOL a/b",
            "mirror pool peer add POOL client.x@far --direction tx-only",
            "mirror pool peer add POOL client.x@far --remote-key-file /absent",
            "mirror pool peer add POOL/n client.x@far",
            "mirror pool peer remove POOL",
            "mirror pool peer remove POOL not-a-uuid",
            "mirror pool peer set POOL",
            "mirror pool peer set POOL not-a-uuid client client.x",
            &format!("mirror pool peer set POOL {UUID}"),
            &format!("mirror pool peer set POOL {UUID} colour blue"),
            &format!("mirror pool peer set POOL {UUID} direction sideways"),
            &format!("mirror pool peer set POOL {UUID} client client.x"),
            &format!("mirror pool peer set POOL {UUID} direction rx-only"),
        ])
        .await?;
    twins
        .all(&[
            &format!("mirror pool peer remove POOL {UUID}"),
            "mirror pool peer add POOL client.x@far",
            "mirror pool info POOL --format json",
            "mirror pool peer add POOL client.y@farther",
            "mirror pool peer set POOL PEER client client.z",
            "mirror pool peer set POOL PEER site-name near",
            "mirror pool peer set POOL PEER cluster nearer",
            "mirror pool peer set POOL PEER mon-host 127.0.0.1:1",
            &format!("mirror pool peer set POOL PEER key-file {key}"),
            "mirror pool peer set POOL PEER key-file /absent",
            "mirror pool peer set --pool POOL PEER direction tx-only",
            "mirror pool info POOL --all",
            "mirror pool peer set POOL PEER direction rx-tx",
            "mirror pool peer set POOL PEER direction rx-only",
            "mirror pool info --all POOL --format xml",
            "mirror pool peer set POOL PEER mon-host",
            "mirror pool info --all POOL",
            "mirror pool disable POOL",
            "mirror pool peer remove POOL PEER",
            &format!(
                "mirror pool peer add --pool POOL --remote-cluster far --remote-client-name client.w --direction rx-only \
                 --remote-mon-host 127.0.0.1:2 --remote-key-file {key}"
            ),
            "mirror pool info --all POOL",
        ])
        .await
}

async fn images(twins: &mut Twins<'_>) -> Result<()> {
    twins
        .refused(&[
            "mirror image enable",
            "mirror image enable POOL/absent snapshot",
            "mirror image enable POOL/i@s snapshot",
            "mirror image enable POOL/i weekly",
            "mirror image snapshot POOL/i",
            "mirror image snapshot POOL/i --skip-quiesce --ignore-quiesce-error",
            "mirror image promote POOL/i",
            "mirror image demote POOL/absent",
            "mirror image status POOL/n/absent",
        ])
        .await?;
    twins
        .all(&[
            "mirror image enable POOL/i snapshot",
            "mirror image enable POOL/i snapshot",
            "mirror image enable POOL/i journal",
            "mirror image enable --pool POOL --namespace n --image i snapshot",
            "mirror image enable --pool POOL bare snapshot",
            "mirror image snapshot POOL/i",
            "mirror image snapshot POOL/n/i --skip-quiesce",
            "mirror image snapshot POOL/i --ignore-quiesce-error",
            "mirror image promote POOL/i",
            "mirror image promote POOL/i --force",
            "mirror image resync POOL/i",
            "mirror image demote POOL/i",
            "mirror image demote POOL/i",
            "mirror image snapshot POOL/i",
            "mirror image resync POOL/i",
            "mirror image disable POOL/i",
            "mirror image promote POOL/i",
            "mirror image demote --pool POOL --image i",
            "mirror image promote POOL/i --force",
            "mirror image disable POOL/i",
            "mirror image disable POOL/i",
            "mirror image enable POOL/i snapshot",
            "mirror image demote POOL/i",
            "mirror image disable POOL/i --force",
            "mirror image disable POOL/n/i",
            "mirror image disable POOL/bare",
        ])
        .await
}

async fn whole_pools(twins: &mut Twins<'_>) -> Result<()> {
    twins
        .all(&[
            "mirror pool promote POOL",
            "mirror pool demote POOL",
            "mirror image enable POOL/i snapshot",
            "mirror image enable POOL/j snapshot",
            "mirror image enable POOL/n/i snapshot",
            "mirror pool promote POOL",
            "mirror pool demote POOL",
            "mirror pool demote --pool POOL",
            "mirror pool promote POOL",
            "mirror pool promote POOL --force",
            "mirror pool demote POOL/n",
            "mirror pool promote --pool POOL --namespace n --force",
            "mirror pool disable POOL",
            "mirror image disable POOL/i",
            "mirror image disable POOL/j",
            "mirror image disable POOL/n/i",
            "mirror pool peer remove POOL PEER",
            "mirror pool disable POOL/n",
            "mirror pool disable POOL",
            "mirror pool info POOL",
        ])
        .await
}

/// Command lines that make no sense end with the stock tool's code.
pub async fn wrong_input(world: &World) -> Result<()> {
    let a = world.a();
    let pool = world.new_pool().await?;
    let alike = [
        "mirror",
        "mirror pool",
        "mirror pool peer",
        "mirror pool frobnicate",
        "mirror pool info --no-such-option",
        "mirror pool info --no-such-option=7",
        "mirror pool info -x",
        "mirror pool info --pool",
        "mirror pool info --pool a --pool b",
        "mirror pool info --format yaml",
        "mirror pool info --pretty-format",
        "mirror pool info --format plain --pretty-format",
        "mirror pool info a b",
        "mirror pool info --force",
        "mirror image status --image",
        "mirror image status a/b/c@d",
        "mirror image status --namespace a/b --image x",
        "mirror image status -p absent-pool x",
        "mirror snapshot schedule add",
        "mirror snapshot schedule add soon",
        "mirror snapshot schedule add 1h later",
        "mirror snapshot schedule ls --pool a --image b/c",
        "mirror snapshot schedule ls --namespace a --image b/c/d",
        "mirror snapshot schedule ls --image a@b",
        "mirror pool peer bootstrap import",
        "mirror pool peer bootstrap import POOL",
        "mirror pool peer bootstrap import POOL /absent/token",
        "mirror pool peer bootstrap import POOL --token-path /absent/token --direction tx-only",
        "mirror pool peer bootstrap create POOL extra",
        "help mirror frobnicate",
        "-c /absent/ceph.conf --no-such-thing mirror pool info",
    ];
    for line in alike {
        let line = line.replace("POOL", &pool);
        let words: Vec<&str> = line.split_whitespace().collect();
        let (theirs, mine) = (run_stock(a, &words).await?, run_ours(a, &words).await?);
        ensure!(
            theirs.code == mine.code && mine.code != Some(0),
            "`{line}`: stock {theirs:?}, ours {mine:?}"
        );
        expect_sentence(&line, &mine)?;
    }
    // Words that the stock tool passes over in silence.
    for line in ["mirror pool info --pool POOL surplus", "mirror image status --pool POOL --image x surplus"]
    {
        let line = line.replace("POOL", &pool);
        let words: Vec<&str> = line.split_whitespace().collect();
        run_ours(a, &words).await?.fails_with(1)?;
    }
    for (line, code) in [
        ("failover", libc::EINVAL),
        ("failover absent-pool", libc::ENOENT),
        ("failover POOL", libc::EINVAL),
        ("failover POOL/absent", libc::ENOENT),
        ("failover POOL --pool POOL", libc::EINVAL),
        ("failover POOL//x", libc::EINVAL),
        ("failback POOL@x", libc::EINVAL),
        ("verify", libc::EINVAL),
        ("verify POOL --max-bytes-per-second fast", libc::EINVAL),
        ("verify POOL --parallel many", 1),
        ("verify POOL", libc::EINVAL),
        ("status absent-pool", libc::ENOENT),
        ("status --format xml", libc::EINVAL),
        ("completions tcsh", 1),
        ("frobnicate", 1),
        ("-n nobody mirror pool info", 1),
        ("-n client.nobody mirror pool info", libc::ENOENT),
        ("--debug-ms", 1),
    ] {
        let words = line.replace("POOL", &pool);
        let words: Vec<&str> = words.split_whitespace().collect();
        let mine = run_ours(a, &words).await?;
        expect_sentence(line, &mine)?;
        mine.fails_with(code).with_context(|| line.to_string())?;
    }
    let args: [&std::ffi::OsStr; 2] = ["mirror".as_ref(), std::os::unix::ffi::OsStrExt::from_bytes(b"\xff")];
    let mut command = ours(a, &[]);
    command.args(args);
    run(command).await?.fails_with(1)?;
    world.strike(&pool).await
}
