# The Rust crate worker/text as a static library behind a C ABI.
find_program(QLORA_CARGO cargo PATHS /usr/bin NO_DEFAULT_PATH)
find_program(QLORA_CARGO cargo REQUIRED)
set(QLORA_TEXT_DIR "${CMAKE_SOURCE_DIR}/worker/text")
set(QLORA_TEXT_TARGET_DIR "${QLORA_DEPS_DIR}/text-target" CACHE PATH "Where cargo builds")
set(QLORA_TEXT_LIBRARY "${QLORA_TEXT_TARGET_DIR}/release/libqlora_text.a")
file(GLOB_RECURSE QLORA_TEXT_SOURCES CONFIGURE_DEPENDS "${QLORA_TEXT_DIR}/src/*.rs")
add_custom_command(
  OUTPUT "${QLORA_TEXT_LIBRARY}"
  COMMAND "${CMAKE_COMMAND}" -E env "CARGO_TARGET_DIR=${QLORA_TEXT_TARGET_DIR}"
          "CARGO_HOME=${QLORA_DEPS_DIR}/cargo"
          "${QLORA_CARGO}" build --release --locked --lib
  WORKING_DIRECTORY "${QLORA_TEXT_DIR}"
  DEPENDS ${QLORA_TEXT_SOURCES} "${QLORA_TEXT_DIR}/Cargo.toml" "${QLORA_TEXT_DIR}/Cargo.lock"
  COMMENT "Building the text crate (Rust)"
  VERBATIM)
add_custom_target(qlora_text_build DEPENDS "${QLORA_TEXT_LIBRARY}")
add_library(qlora_text INTERFACE)
add_library(qlora::text ALIAS qlora_text)
add_dependencies(qlora_text qlora_text_build)
target_link_libraries(qlora_text INTERFACE "${QLORA_TEXT_LIBRARY}" pthread dl m)
