# The commit that this is built from, in qlora_revision.h of QLORA_REVISION_DIR:
# looked up at each build, written only where it changes; with "-dirty" where
# tracked files differ from it. "unknown" outside of a git checkout. Run as a
# script (cmake -P), it writes the header.
if(NOT CMAKE_SCRIPT_MODE_FILE)
  set(QLORA_REVISION_DIR "${CMAKE_BINARY_DIR}/revision")
  add_custom_target(qlora_revision
    COMMAND "${CMAKE_COMMAND}" "-DSOURCE=${CMAKE_SOURCE_DIR}"
            "-DHEADER=${QLORA_REVISION_DIR}/qlora_revision.h"
            -P "${CMAKE_CURRENT_LIST_FILE}"
    BYPRODUCTS "${QLORA_REVISION_DIR}/qlora_revision.h"
    VERBATIM)
  return()
endif()

execute_process(
  COMMAND git --no-optional-locks -C "${SOURCE}" describe --always --dirty
          "--exclude=*" --abbrev=12
  OUTPUT_VARIABLE revision OUTPUT_STRIP_TRAILING_WHITESPACE
  ERROR_QUIET RESULT_VARIABLE failed)
if(failed)
  set(revision unknown)
endif()
set(text "#pragma once\n#define QLORA_REVISION \"${revision}\"\n")
set(before "")
if(EXISTS "${HEADER}")
  file(READ "${HEADER}" before)
endif()
if(NOT text STREQUAL before)
  file(WRITE "${HEADER}" "${text}")
endif()
