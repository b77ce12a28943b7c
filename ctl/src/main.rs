//! The command `rbd-mirrorctl`.
fn main() {
    let mut out = Vec::new();
    if std::env::args().nth(1).as_deref() == Some("man") { ctl::grammar::manual::page(&mut out).unwrap(); } else {
    ctl::grammar::manual::completions(std::env::args().nth(1).unwrap().parse().unwrap(), &mut out);}
    print!("{}", String::from_utf8(out).unwrap());
}
