# CUDA kernels, compiled by an nvcc that may come from NVIDIA's toolkit or from PyPI.
#
#   SIGNVOTE_NVCC (environment or cache)  this nvcc; wins over those that are found
#
# Looked for in PATH, in /usr/local/cuda, and where scripts/setup puts PyPI's. Sets SIGNVOTE_HAS_CUDA and defines the target
# CUDA::runtime and signvote_cuda_objects(). CMake's own CUDA language is not used: it links programs to try the compiler,
# for which PyPI's folders are not laid out.
include_guard(GLOBAL)

set(SIGNVOTE_HAS_CUDA OFF CACHE INTERNAL "Whether the CUDA kernels are compiled")
if(NOT SIGNVOTE_WITH_CUDA)
  return()
endif()
set(SIGNVOTE_CUDA_VERSION_MIN 13.0) # the first whose runtime is libcudart.so.13, as LibTorch's is

set(_cache "$ENV{XDG_CACHE_HOME}")
if(NOT _cache)
  set(_cache "$ENV{HOME}/.cache")
endif()
set(_pypi "${_cache}/signvote/cuda-13.0/nvidia/cu13")

# The version of an nvcc as M.m, or nothing.
function(_signvote_nvcc_version nvcc result)
  execute_process(COMMAND "${nvcc}" --version OUTPUT_VARIABLE text ERROR_QUIET RESULT_VARIABLE status)
  set(${result} "" PARENT_SCOPE)
  if(status EQUAL 0 AND text MATCHES "release ([0-9]+\\.[0-9]+)")
    set(${result} "${CMAKE_MATCH_1}" PARENT_SCOPE)
  endif()
endfunction()

# Chosen anew at each configuration: a toolkit may have come or gone.
set(_nvcc "")
foreach(_own "$ENV{SIGNVOTE_NVCC}" "${SIGNVOTE_NVCC}")
  if(_own AND NOT _nvcc)
    _signvote_nvcc_version("${_own}" _version)
    if(NOT _version OR _version VERSION_LESS SIGNVOTE_CUDA_VERSION_MIN)
      message(FATAL_ERROR "SIGNVOTE_NVCC=${_own} is no nvcc ${SIGNVOTE_CUDA_VERSION_MIN} or later: name one, unset it, or "
                          "configure with -DSIGNVOTE_WITH_CUDA=OFF")
    endif()
    set(_nvcc "${_own}")
  endif()
endforeach()
if(NOT _nvcc)
  find_program(_signvote_path_nvcc nvcc NO_CACHE)
  foreach(_candidate "${_signvote_path_nvcc}" /usr/local/cuda/bin/nvcc "${_pypi}/bin/nvcc")
    if(_candidate AND EXISTS "${_candidate}" AND NOT _nvcc)
      _signvote_nvcc_version("${_candidate}" _version)
      if(_version AND NOT _version VERSION_LESS SIGNVOTE_CUDA_VERSION_MIN)
        set(_nvcc "${_candidate}")
      endif()
    endif()
  endforeach()
endif()
if(NOT _nvcc)
  message(STATUS "CUDA: no nvcc ${SIGNVOTE_CUDA_VERSION_MIN} or later; the worker will have no CUDA kernels (scripts/setup "
                 "gets one)")
  return()
endif()

# Where it really lives: it may be a link, or a script that calls another.
execute_process(COMMAND "${_nvcc}" --dryrun -E -x cu /dev/null OUTPUT_VARIABLE _plan ERROR_VARIABLE _plan)
string(REGEX MATCH "TOP=([^\n]*)" _ "${_plan}")
get_filename_component(_root "${CMAKE_MATCH_1}" REALPATH)
# LibTorch's runtime first: a process must not have two.
set(_runtimes "")
if(LibTorch_FOUND)
  get_filename_component(_beside "${LibTorch_ROOT}" DIRECTORY)
  list(APPEND _runtimes "${_beside}/nvidia/cu13/lib" "${LibTorch_ROOT}/lib")
endif()
list(APPEND _runtimes "${_root}/lib64" "${_root}/lib" "${_root}/targets/x86_64-linux/lib" "${_pypi}/lib")
find_library(_cudart NAMES libcudart.so.13 PATHS ${_runtimes} NO_DEFAULT_PATH NO_CACHE)
if(NOT _cudart OR NOT EXISTS "${_root}/include/cuda_runtime.h")
  message(FATAL_ERROR "CUDA: ${_nvcc} has no include/cuda_runtime.h beside it, or libcudart.so.13 is in none of ${_runtimes}; "
                      "complete it, or configure with -DSIGNVOTE_WITH_CUDA=OFF")
endif()
message(STATUS "CUDA: ${_nvcc} ${_version}, runtime ${_cudart}")
set(SIGNVOTE_HAS_CUDA ON CACHE INTERNAL "Whether the CUDA kernels are compiled")

# An imported library, so that CMake writes its folder into programs of the build tree and replaces it at installation.
add_library(CUDA::runtime SHARED IMPORTED GLOBAL)
set_target_properties(CUDA::runtime PROPERTIES
  IMPORTED_LOCATION "${_cudart}" IMPORTED_SONAME libcudart.so.13 INTERFACE_INCLUDE_DIRECTORIES "${_root}/include"
  INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${_root}/include")

# Machine code for Ampere, Hopper and both Blackwells, and PTX for what comes later. No product is fused into a sum but
# where the source says fma, so -fmad=false; a spilled register is a warning, and a warning an error.
set(SIGNVOTE_NVCC_OPTIONS -std=c++20 -O3 -fmad=false --expt-relaxed-constexpr
    -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90,code=sm_90 -gencode=arch=compute_100,code=sm_100
    -gencode=arch=compute_120,code=[sm_120,compute_120]
    -Werror=all-warnings -Xptxas=-Werror -Xptxas=-warn-spills
    -Xcompiler=-Wall -Xcompiler=-Wextra -Xcompiler=-Werror -Xcompiler=-fPIC -Xcompiler=-fvisibility=hidden)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  list(APPEND SIGNVOTE_NVCC_OPTIONS "-ccbin=${CMAKE_CXX_COMPILER}")
endif()
set(SIGNVOTE_NVCC_COMMAND ${CMAKE_CXX_COMPILER_LAUNCHER} "${_nvcc}")

# signvote_cuda_objects(result SRCS x.cu ...): compiles the sources; `result` lists the objects, for a library's SRCS.
function(signvote_cuda_objects result)
  cmake_parse_arguments(arg "" "" "SRCS" ${ARGN})
  set(objects "")
  foreach(source IN LISTS arg_SRCS)
    set(object "${CMAKE_CURRENT_BINARY_DIR}/${source}.o")
    add_custom_command(OUTPUT "${object}"
      COMMAND ${SIGNVOTE_NVCC_COMMAND} ${SIGNVOTE_NVCC_OPTIONS} "-I${PROJECT_SOURCE_DIR}" -MMD -MF "${object}.d" -MT "${object}"
              -c "${CMAKE_CURRENT_SOURCE_DIR}/${source}" -o "${object}"
      DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/${source}" "${_signvote_cuda_file}"
      DEPFILE "${object}.d"
      COMMENT "Compiling CUDA kernels ${source}"
      VERBATIM COMMAND_EXPAND_LISTS)
    set_source_files_properties("${object}" PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
    list(APPEND objects "${object}")
  endforeach()
  set(${result} "${objects}" PARENT_SCOPE)
endfunction()
set(_signvote_cuda_file "${CMAKE_CURRENT_LIST_FILE}")
