//! Command lines as they are typed, and what they mean. Which ones stock `rbd` takes is shown on real clusters.

use clap::error::ErrorKind;
use proptest::prelude::*;

use super::own::{FailoverArgs, VerifyArgs};
use super::rbd::*;
use super::*;

fn parsed(line: &str) -> Result<Invocation, Failure> {
    parse("", line.split_whitespace().map(str::to_string))
}

fn request(line: &str) -> Request {
    match parsed(line) {
        Ok(Invocation::Run(request)) => *request,
        Ok(Invocation::Print(text)) => panic!("'{line}' prints {text}"),
        Err(failure) => panic!("'{line}': {failure}"),
    }
}

fn image_command(line: &str) -> ImageCommand {
    match request(line).command {
        Command::Mirror(Mirror::Image(command)) => command,
        other => panic!("'{line}' is {other:?}"),
    }
}

fn some(word: &str) -> Option<String> {
    Some(word.to_string())
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn options_may_stand_anywhere() {
    let expected = image_command("mirror image promote --force --pool p --namespace n i");
    let image = ImageArgs { image_spec: some("i"), pool: some("p"), namespace: some("n"), image: None };
    assert_eq!(expected, ImageCommand::Promote { image, force: true });
    for line in [
        "--pool p mirror --namespace n image --force promote i",
        "mirror image promote i -p p --force --namespace=n",
        "mirror image promote i -pp --namespace n --force",
        "--force -p p mirror image promote --namespace n -- i",
        "mirror -- image promote i --force".replace("-- ", "--pool p --namespace n ").as_str(),
    ] {
        assert_eq!(image_command(line), expected, "{line}");
    }
}

#[test]
fn every_command_of_rbd_mirror_is_there() {
    for line in [
        "mirror image enable p/i snapshot",
        "mirror image disable p/i --force",
        "mirror image demote p/i",
        "mirror image resync p/i",
        "mirror image snapshot p/i --skip-quiesce --ignore-quiesce-error",
        "mirror image status p/i --format json --pretty-format",
        "mirror pool demote p",
        "mirror pool disable p/n",
        "mirror pool enable p image --site-name a --remote-namespace r",
        "mirror pool info p --all --format xml",
        "mirror pool peer add p client.a@b --remote-client-name c --remote-cluster d --remote-mon-host e \
         --remote-key-file f --direction rx-only",
        "mirror pool peer remove p u",
        "mirror pool peer set p u direction tx-only",
        "mirror pool peer bootstrap create p --site-name a",
        "mirror pool peer bootstrap import p - --site-name a --direction rx-tx",
        "mirror pool peer bootstrap import -p p --token-path t",
        "mirror pool promote p --force",
        "mirror pool status p --verbose --format plain",
        "mirror snapshot schedule add -p p --image i 5m 2026-01-01T00:00",
        "mirror snapshot schedule list -R",
        "mirror snapshot schedule ls --recursive --format json",
        "mirror snapshot schedule remove --namespace n 5m",
        "mirror snapshot schedule rm",
        "mirror snapshot schedule status -p p",
    ] {
        request(line);
    }
}

#[test]
fn our_own_commands() {
    let Command::Failover(args) = request("failover p/i --emergency --dry-run --report r.json").command
    else {
        panic!("not a failover")
    };
    let FailoverArgs { target, emergency, dry_run, report, peer, .. } = args;
    assert_eq!((target.target, emergency, dry_run), (some("p/i"), true, true));
    assert_eq!((report.report, peer.peer_timeout), (Some("r.json".into()), 30));
    let Command::Verify(VerifyArgs { parallel, max_objects_per_second, .. }) =
        request("verify p --max-objects-per-second 100").command
    else {
        panic!("not a verification")
    };
    assert_eq!((parallel, max_objects_per_second), (32, Some(100)));
    request("status -w --interval 1");
    request("failback p --discard-local");
    request("completions bash");
    request("man");
    assert!(parsed("failover p --emergency --verify").is_err());
}

#[test]
fn cephs_options_are_taken_out_wherever_they_stand() {
    let line = "-c /x.conf --cluster site-a --id a mirror --debug-rbd 20 pool --log-to-stderr info --rbd_default_pool=q \
                -m 127.0.0.1 --no-rbd-validate-names --err-to-stderr false -k /k -K /f --no-config-file --no-mon-config p";
    let request = request(line);
    assert_eq!(request.cluster.conf, Some("/x.conf".into()));
    assert_eq!(request.cluster.cluster, some("site-a"));
    assert_eq!(request.cluster.id, some("a"));
    assert_eq!((request.cluster.mon_host, request.cluster.keyring), (some("127.0.0.1"), some("/k")));
    assert_eq!(request.cluster.keyfile, some("/f"));
    assert!(request.no_conf_file);
    let options: Vec<(&str, &str)> =
        request.ceph_options.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let expected = [
        ("debug_rbd", "20"),
        ("err_to_stderr", "false"),
        ("log_to_stderr", "true"),
        ("rbd_default_pool", "q"),
        ("rbd_validate_names", "false"),
    ];
    assert_eq!(options, expected);
    let Command::Mirror(Mirror::Pool(PoolCommand::Info { pool, .. })) = request.command else { panic!() };
    assert_eq!(pool.pool_spec, some("p"));
}

#[test]
fn the_command_line_wins_over_the_environment_and_the_last_word_over_those_before() {
    let words = |line: &str| line.split(' ').map(str::to_string).collect::<Vec<_>>();
    let parsed =
        parse("--id a --mon_host x --debug-ms 1", words("--name client.b man --debug-ms 2 -m y -m z"));
    let Ok(Invocation::Run(request)) = parsed else { panic!("{parsed:?}") };
    assert_eq!((request.cluster.name, request.cluster.id), (some("client.b"), None));
    assert_eq!((request.cluster.mon_host, request.ceph_options["debug_ms"].as_str()), (some("z"), "2"));
}

#[test]
fn nonsense_is_refused_with_a_sentence_and_exit_code_1() {
    for line in [
        "mirror",
        "mirror image",
        "mirror pool peer nonsense",
        "nonsense",
        "mirror pool info --nonsense",
        "mirror pool info p --force",
        "mirror pool info p extra",
        "mirror pool info -x",
        "mirror pool info --format yaml p",
        "mirror pool info --pool",
        "mirror pool info -p",
        "mirror pool info p --debug-rbd",
        "mirror pool info -p a -p b",
        "mirror pool peer add p c --direction tx-only",
        "verify p --parallel many",
        "help nonsense",
    ] {
        let failure = parsed(line).expect_err(line);
        assert_eq!(failure.exit_code(), 1, "{line}");
        assert!(failure.to_string().contains(' '), "{line}: {failure}");
    }
}

#[test]
fn help_and_version_print() {
    let print = |line: &str| match parsed(line) {
        Ok(Invocation::Print(text)) => text,
        other => panic!("'{line}': {other:?}"),
    };
    assert!(print("").contains("failover"));
    assert_eq!(print("help"), print("--help"));
    for line in ["help mirror pool peer bootstrap import", "mirror pool peer bootstrap import -h"] {
        let text = print(line);
        assert!(text.contains("--token-path") && text.contains("--keyring"), "{text}");
    }
    assert!(print("mirror image --help").contains("resync"));
    assert_eq!(print("--version"), print("mirror pool info -v"));
    assert!(print("-v").starts_with("rbd-mirrorctl version "));
    assert_eq!(Cli::command().try_get_matches_from(["x", "-h"]).unwrap_err().kind(), ErrorKind::DisplayHelp);
}

proptest! {
    #[test]
    fn any_words_are_understood_or_refused(words in proptest::collection::vec(
        prop_oneof![
            "[ -~]{0,6}",
            Just("mirror".to_string()), Just("pool".to_string()), Just("image".to_string()),
            Just("status".to_string()), Just("--pool".to_string()), Just("--".to_string()),
        ], 0..8)) {
        let _ = parse("", words);
    }
}
