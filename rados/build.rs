//! Compiles the C++ shim and links librados.

fn main() {
    const SHIM: &str = "src/librados/shim.cc";
    println!("cargo:rerun-if-changed={SHIM}");
    // Optimised in every profile: it is a thin layer on the path of every operation. The deprecated parts of
    // librados.hpp are not used, but merely including it warns about them.
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .flag_if_supported("-Wno-deprecated-declarations")
        .file(SHIM)
        .compile("rados_shim");
    println!("cargo:rustc-link-lib=dylib=rados");
}
