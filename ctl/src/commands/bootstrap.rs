//! `mirror pool peer bootstrap create|import`

use std::io::Read;
use std::path::Path;

use bootstrap::{ImportDirection, Token, create_token};

use super::{peer, set_site_name};
use crate::connection::Site;
use crate::failure::Failure;
use crate::grammar::Request;
use crate::grammar::rbd::{BootstrapCommand, Direction};
use crate::output;
use crate::spec::{self, Positionals};

/// Bytes of standard input that are looked at.
const TOKEN_BYTES_MAX: u64 = 64 << 10;

/// Carries out a command about tokens.
pub async fn run(request: &Request, command: &BootstrapCommand) -> Result<(), Failure> {
    match command {
        BootstrapCommand::Create { pool, site: site_args } => {
            let spec = peer::only(pool)?;
            let (site, pool) = peer::mirrored_pool(request, &spec).await?;
            set_site_name(&site, site_args).await?;
            let token = create_token(&site.cluster, pool.id()).await?;
            output::put(&format!("{}\n", token.encode()))
        }
        BootstrapCommand::Import { pool, token, site: site_args, token_path, direction } => {
            let mut words = Positionals::new([&pool.pool_name, token]);
            let spec = spec::pool_name(pool, &mut words)?;
            let path = token_path.clone().filter(|path| !path.is_empty()).or_else(|| words.take());
            words.end()?;
            let path = path.ok_or_else(|| {
                Failure::invalid("no token was named; name its file, or - for standard input")
            })?;
            let token = read_token(&path)?;
            let direction = match direction {
                Some(Direction::RxOnly) => ImportDirection::RxOnly,
                Some(Direction::RxTx) | None => ImportDirection::RxTx,
            };
            let site = Site::connect(request).await?;
            let pool = site.pool(&spec).await?;
            set_site_name(&site, site_args).await?;
            pool.import_token(&token, direction, &site.peer_connector()).await?;
            Ok(())
        }
    }
}

fn read_token(path: &str) -> Result<Token, Failure> {
    if path != "-" {
        return Ok(Token::read(Path::new(path))?);
    }
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().take(TOKEN_BYTES_MAX).read_to_end(&mut bytes);
    read.map_err(|e| Failure::io("read a token from standard input", &e))?;
    Ok(Token::decode(&String::from_utf8_lossy(&bytes))?)
}
