# GoogleTest and one helper.
#   qlora_test(name SOURCES a_test.cc DEPS qlora::x [LABELS unit] [TIMEOUT 60])
# Every test also gets its directory below tests/ as a label ("unit/server"):
# scripts/test chooses by it what runs under sanitizers.
if(QLORA_TESTS)
  find_package(GTest REQUIRED)
endif()
function(qlora_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPS;LABELS;ENVIRONMENT" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE qlora_compiler ${ARG_DEPS} GTest::gmock GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE
    QLORA_SOURCE_DIR="${CMAKE_SOURCE_DIR}" QLORA_BINARY_DIR="${CMAKE_BINARY_DIR}")
  add_test(NAME ${name} COMMAND ${name})
  file(RELATIVE_PATH directory "${CMAKE_SOURCE_DIR}/tests" "${CMAKE_CURRENT_SOURCE_DIR}")
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT}
    LABELS "${ARG_LABELS};${directory}" ENVIRONMENT "${ARG_ENVIRONMENT}")
endfunction()

# A test that runs real programs, written in Python (Debian's, standard library
# only). It finds them by QLORA_BIN. A script that cannot run prints
# "SKIPPED: reason" and exits with 77.
#   qlora_script_test(name SCRIPT a_test.py [LABELS e2e] [TIMEOUT 300])
function(qlora_script_test name)
  cmake_parse_arguments(ARG "" "SCRIPT;TIMEOUT" "LABELS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  if(NOT ARG_LABELS)
    set(ARG_LABELS e2e)
  endif()
  add_test(NAME ${name} COMMAND /usr/bin/python3 "${CMAKE_CURRENT_SOURCE_DIR}/${ARG_SCRIPT}")
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT}
    LABELS "${ARG_LABELS}" SKIP_RETURN_CODE 77
    ENVIRONMENT "QLORA_BIN=${CMAKE_BINARY_DIR}/bin;QLORA_DEPS=${QLORA_DEPS_DIR};PYTHONDONTWRITEBYTECODE=1")
endfunction()
