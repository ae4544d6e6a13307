//! What `#[server]` refuses, and in which words: each with the name of the method and the reason.

#[test]
fn a_block_that_cannot_work_is_refused_with_the_methods_name_and_the_reason() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/accepted/*.rs");
    cases.compile_fail("tests/refused/*.rs");
}
