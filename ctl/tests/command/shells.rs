//! What people see in their shells: completions, the man page, and progress bars on a terminal but not in a pipe.

use anyhow::{Result, ensure};
use tests::Tool;

use crate::world::{MIB, World, ctl, run_ours};

/// What bash offers behind a line.
async fn offered(words: &[&str]) -> Result<String> {
    let script = format!(
        "source <(\"$0\" completions bash); COMP_WORDS=(rbd-mirrorctl {}); COMP_CWORD={}; \
         $(complete -p rbd-mirrorctl | grep -o '_rbd[a-z_]*') rbd-mirrorctl \"${{COMP_WORDS[COMP_CWORD]}}\" \
         \"${{COMP_WORDS[COMP_CWORD-1]}}\"; echo \"${{COMPREPLY[*]}}\"",
        words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" "),
        words.len()
    );
    Ok(Tool::new("bash").args(["-c", &script]).arg(ctl()).run().await?)
}

/// Completions work in bash; the man page is sound.
pub async fn completions(world: &World) -> Result<()> {
    ensure!(offered(&["mirror", "pool", "peer", "boot"]).await?.trim() == "bootstrap");
    let import = offered(&["mirror", "pool", "peer", "bootstrap", "import", "--"]).await?;
    ensure!(import.contains("--token-path") && import.contains("--keyring"), "{import}");
    ensure!(offered(&["mirror", "pool", "status", "--format", ""]).await?.contains("xml"));
    ensure!(offered(&["fail"]).await?.trim() == "failover failback");

    let page = run_ours(world.a(), &["man"]).await?.ok()?;
    ensure!(page.starts_with(".ie") && page.contains(".SS \"mirror image resync\""));
    let formatted =
        Tool::new("groff").args(["-man", "-ww", "-Tascii", "-P-cbou", "-"]).stdin(page).run().await;
    match formatted {
        Ok(text) => ensure!(text.contains("mirror snapshot schedule add")),
        // groff is no part of what the tests need.
        Err(tests::ToolError::Start { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

pub async fn bars_on_terminals_only(world: &World) -> Result<()> {
    let pool = world.mirrored_pool().await?;
    for name in ["one", "two"] {
        world.mirrored_image(&format!("{pool}/{name}"), 4 * MIB, 1).await?;
    }
    let demoted = run_ours(world.a(), &["mirror", "pool", "demote", &pool]).await?;
    ensure!(demoted.stderr.is_empty() && demoted.stdout == "Demoted 2 mirrored images\n", "{demoted:?}");
    let line =
        format!("{} -c {} mirror pool promote {pool}", ctl().display(), world.a().conf_path().display());
    let shown = Tool::new("script").args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").run().await?;
    ensure!(shown.contains("promoting [") && shown.contains("/2 images"), "{shown:?}");
    ensure!(shown.trim_end().ends_with("Promoted 2 mirrored images"), "{shown:?}");
    world.strike(&pool).await
}
