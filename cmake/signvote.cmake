# The few functions every CMakeLists.txt of this repository uses, and the settings they stand on.
include_guard(GLOBAL)

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bin")
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "" FORCE)
endif()

find_program(SIGNVOTE_CCACHE ccache)
if(SIGNVOTE_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${SIGNVOTE_CCACHE}")
endif()
if(SIGNVOTE_PRECOMPILE AND SIGNVOTE_CCACHE)
  # What ccache's manual asks for where headers are precompiled.
  set(CMAKE_CXX_COMPILER_LAUNCHER "${CMAKE_COMMAND};-E;env;CCACHE_SLOPPINESS=pch_defines,time_macros;${SIGNVOTE_CCACHE}")
  set(SIGNVOTE_PRECOMPILE_OPTIONS -fpch-preprocess)
endif()
find_program(SIGNVOTE_LLD ld.lld)
if(SIGNVOTE_SYNTAX_ONLY)
  # Outputs are empty files, of which only the times count. There is nothing for a cache to keep.
  set(CMAKE_CXX_COMPILER_LAUNCHER "")
  set(CMAKE_CXX_COMPILE_OBJECT
      "<CMAKE_CXX_COMPILER> <DEFINES> <INCLUDES> <FLAGS> -fsyntax-only <SOURCE> && \"${CMAKE_COMMAND}\" -E touch <OBJECT>")
  set(CMAKE_CXX_CREATE_STATIC_LIBRARY "\"${CMAKE_COMMAND}\" -E touch <TARGET>")
  set(CMAKE_CXX_ARCHIVE_CREATE "${CMAKE_CXX_CREATE_STATIC_LIBRARY}")
  set(CMAKE_CXX_ARCHIVE_FINISH "\"${CMAKE_COMMAND}\" -E true")
  set(CMAKE_CXX_LINK_EXECUTABLE "\"${CMAKE_COMMAND}\" -E touch <TARGET>")
endif()

set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
# Debian ships no protobuf-config.cmake: CMake's own module, and before gRPC, whose config expects its targets.
find_package(Protobuf REQUIRED)
find_package(absl CONFIG REQUIRED)
find_package(gRPC CONFIG REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(spdlog CONFIG REQUIRED)
find_package(nlohmann_json CONFIG REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)
# Only some builds of xxHash, amd64's in Debian among them, have the functions that look at the processor.
include(CheckCXXSymbolExists)
set(CMAKE_REQUIRED_LIBRARIES PkgConfig::XXHASH)
check_cxx_symbol_exists(XXH3_64bits_withSeed_dispatch xxh_x86dispatch.h SIGNVOTE_XXHASH_DISPATCH)
unset(CMAKE_REQUIRED_LIBRARIES)
if(NOT SIGNVOTE_WORKER_LIBRARIES_ONLY)
  find_package(CLI11 CONFIG REQUIRED)
  find_path(SIGNVOTE_TOMLPLUSPLUS toml++/toml.h REQUIRED)  # headers alone
  find_path(SIGNVOTE_STB stb/stb_image.h REQUIRED)  # headers alone
  find_package(prometheus-cpp CONFIG REQUIRED)
  pkg_check_modules(NCURSESW REQUIRED IMPORTED_TARGET ncursesw)
  pkg_check_modules(TURBOJPEG REQUIRED IMPORTED_TARGET libturbojpeg)
  if(SIGNVOTE_WITH_TESTS)
    find_package(GTest CONFIG REQUIRED)
  endif()
endif()
# LibTorch last: its users must resolve protobuf and Abseil from Debian, never through it.
if(SIGNVOTE_WITH_TORCH AND NOT SIGNVOTE_WORKER_LIBRARIES_ONLY)
  find_package(LibTorch)
  if(NOT LibTorch_FOUND)
    message(WARNING "LibTorch not found: building everything but the worker program. "
                    "Run scripts/setup, or set LIBTORCH=/path, to build it.")
  endif()
endif()

# Warnings and sanitizers travel as one interface target, so no folder sets flags of its own.
add_library(signvote_flags INTERFACE)
target_include_directories(signvote_flags INTERFACE "${PROJECT_SOURCE_DIR}" "${PROJECT_BINARY_DIR}")
# -ffp-contract=off: apply() states each rounding; a compiler must not fuse what the page writes apart.
# -Wno-sign-conversion: a part of clang's -Wconversion and not of g++'s.
# -Wno-missing-field-initializers: designated initialisers leave out what keeps its default.
target_compile_options(signvote_flags INTERFACE
  -Wall -Wextra -Wno-missing-field-initializers -Wpedantic -Wshadow -Wnon-virtual-dtor -Wold-style-cast -Wcast-qual
  -Wconversion -Wno-sign-conversion
  -Werror=return-type -Werror=unused-result -ffp-contract=off)
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  target_compile_options(signvote_flags INTERFACE -Wthread-safety -Wthread-safety-beta)
endif()
if(SIGNVOTE_CHECK_WAITS)
  target_compile_definitions(signvote_flags INTERFACE SIGNVOTE_CHECK_WAITS)
endif()
if(SIGNVOTE_LLD)
  target_link_options(signvote_flags INTERFACE -fuse-ld=lld)
endif()
if(SIGNVOTE_SANITIZE)
  target_compile_options(signvote_flags INTERFACE -fsanitize=${SIGNVOTE_SANITIZE}
                         -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(signvote_flags INTERFACE -fsanitize=${SIGNVOTE_SANITIZE})
endif()

if(SIGNVOTE_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "SIGNVOTE_FUZZ needs clang, which has libFuzzer: use the preset fuzz, or leave it OFF")
  endif()
  # Everything tells libFuzzer which way it went; only the fuzzers have its main().
  target_compile_options(signvote_flags INTERFACE -fsanitize=fuzzer-no-link)
  target_link_options(signvote_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()

# For what reads numbers that people type: none may change on its way into an option.
set(SIGNVOTE_NUMBERS_OPTIONS -Werror=conversion)

# ISA flags for set_source_files_properties(<kernel>.cc PROPERTIES COMPILE_OPTIONS ...): per file, never globally.
# g++ 12 takes the intrinsics' deliberately undefined operands for a mistake.
set(SIGNVOTE_INTRINSICS_OPTIONS "$<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>;$<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized>")
set(SIGNVOTE_AVX2_OPTIONS "-mavx2;-mfma")
set(SIGNVOTE_AVX512_OPTIONS "-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mfma;${SIGNVOTE_INTRINSICS_OPTIONS}")

# signvote_library(name SRCS ... HDRS ... DEPS ... [PRIVATE_DEPS ...]): one static library per folder, as signvote::name.
function(signvote_library name)
  cmake_parse_arguments(arg "" "" "SRCS;HDRS;DEPS;PRIVATE_DEPS" ${ARGN})
  if(arg_SRCS)
    add_library(signvote_${name} STATIC ${arg_SRCS} ${arg_HDRS})
    target_link_libraries(signvote_${name} PUBLIC signvote_flags ${arg_DEPS} PRIVATE ${arg_PRIVATE_DEPS})
  else()
    add_library(signvote_${name} INTERFACE)
    target_link_libraries(signvote_${name} INTERFACE signvote_flags ${arg_DEPS})
  endif()
  add_library(signvote::${name} ALIAS signvote_${name})
endfunction()

# signvote_program(name SRCS ... DEPS ...): an executable in build/<preset>/bin.
function(signvote_program name)
  cmake_parse_arguments(arg "" "" "SRCS;DEPS" ${ARGN})
  add_executable(${name} ${arg_SRCS})
  target_link_libraries(${name} PRIVATE signvote_flags ${arg_DEPS})
endfunction()

# signvote_test(name LABEL unit SRCS ... DEPS ... [TIMEOUT s] [ARGS ...] [SINGLE_THREAD]): one GoogleTest program and one ctest
# entry. SINGLE_THREAD: nothing it tests is used by two threads, so that a race detector has nothing to see and its build leaves
# the program out; a source that includes <thread> is refused.
function(signvote_test name)
  cmake_parse_arguments(arg "SINGLE_THREAD" "LABEL;TIMEOUT" "SRCS;DEPS;ARGS" ${ARGN})
  if(arg_SINGLE_THREAD)
    foreach(source ${arg_SRCS})
      file(STRINGS "${source}" threads REGEX "#include <thread>")
      if(threads)
        message(FATAL_ERROR "${name} is called SINGLE_THREAD and ${source} includes <thread>: leave the word out")
      endif()
    endforeach()
    if(SIGNVOTE_SANITIZE STREQUAL "thread")
      return()
    endif()
  endif()
  add_executable(${name} ${arg_SRCS})
  target_link_libraries(${name} PRIVATE signvote_flags ${arg_DEPS} GTest::gtest GTest::gmock GTest::gtest_main)
  if(SIGNVOTE_PRECOMPILE)
    list(LENGTH arg_SRCS sources)
    if(sources GREATER 1)
      target_precompile_headers(${name} REUSE_FROM signvote_precompiled)
      target_compile_options(${name} PRIVATE ${SIGNVOTE_PRECOMPILE_OPTIONS})
    endif()
  endif()
  if(SIGNVOTE_TEST_OPTIONS)
    target_compile_options(${name} PRIVATE ${SIGNVOTE_TEST_OPTIONS})
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 120)
  endif()
  # Only what hangs shall run into it: ten times slower under a sanitizer is no fault.
  if(SIGNVOTE_SANITIZE)
    math(EXPR arg_TIMEOUT "${arg_TIMEOUT} * 4")
  endif()
  add_test(NAME ${name} COMMAND ${name} ${arg_ARGS})
  set_tests_properties(${name} PROPERTIES LABELS "${arg_LABEL}" TIMEOUT ${arg_TIMEOUT})
endfunction()
