# The Rust crate worker/text as a static library behind a C ABI.
find_program(QLORA_CARGO cargo PATHS /usr/bin NO_DEFAULT_PATH)
find_program(QLORA_CARGO cargo REQUIRED)
# The rustc that belongs to that cargo, not a shim that comes first in PATH.
cmake_path(GET QLORA_CARGO PARENT_PATH QLORA_RUST_BIN)
set(QLORA_TEXT_DIR "${CMAKE_SOURCE_DIR}/worker/text")
# Links resolved: cargo builds anew what it sees under another path.
file(REAL_PATH "${QLORA_DEPS_DIR}" QLORA_CARGO_ROOT)
set(QLORA_TEXT_TARGET_DIR "${QLORA_CARGO_ROOT}/text-target" CACHE PATH "Where cargo builds")
# Copied, since several build trees may share cargo's.
set(QLORA_TEXT_LIBRARY "${CMAKE_BINARY_DIR}/libqlora_text.a")
set(QLORA_TEXT_SOURCES
  "${QLORA_TEXT_DIR}/Cargo.toml" "${QLORA_TEXT_DIR}/Cargo.lock"
  "${QLORA_TEXT_DIR}/src/bounded.rs" "${QLORA_TEXT_DIR}/src/conversation.rs"
  "${QLORA_TEXT_DIR}/src/jinja.rs" "${QLORA_TEXT_DIR}/src/lib.rs"
  "${QLORA_TEXT_DIR}/src/mask.rs" "${QLORA_TEXT_DIR}/src/python.rs"
  "${QLORA_TEXT_DIR}/src/template.rs" "${QLORA_TEXT_DIR}/src/tokenizer.rs")
add_custom_command(
  OUTPUT "${QLORA_TEXT_LIBRARY}"
  COMMAND "${CMAKE_COMMAND}" -E env "CARGO_TARGET_DIR=${QLORA_TEXT_TARGET_DIR}"
          "CARGO_HOME=${QLORA_CARGO_ROOT}/cargo" "RUSTC=${QLORA_RUST_BIN}/rustc"
          "${QLORA_CARGO}" build --release --locked --lib
  COMMAND "${CMAKE_COMMAND}" -E copy
          "${QLORA_TEXT_TARGET_DIR}/release/libqlora_text.a" "${QLORA_TEXT_LIBRARY}"
  WORKING_DIRECTORY "${QLORA_TEXT_DIR}"
  DEPENDS ${QLORA_TEXT_SOURCES}
  COMMENT "Building the text crate (Rust)"
  VERBATIM)
add_custom_target(qlora_text_build DEPENDS "${QLORA_TEXT_LIBRARY}")
add_library(qlora_text INTERFACE)
add_library(qlora::text ALIAS qlora_text)
add_dependencies(qlora_text qlora_text_build)
target_link_libraries(qlora_text INTERFACE "${QLORA_TEXT_LIBRARY}" pthread dl m)
