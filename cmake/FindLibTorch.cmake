# Finds LibTorch without its own CMake package, which forces nvcc and cuDNN and rewrites compiler flags.
#
#   LIBTORCH (environment or cache)  the folder that holds include/ and lib/; wins over the one scripts/setup made
#
# Defines LibTorch_FOUND, LibTorch_ROOT and the target LibTorch::cpu (torch_cpu and c10 only: the CUDA back end is
# loaded on demand, so that one program serves machines with and without a GPU).
set(_signvote_cache "$ENV{XDG_CACHE_HOME}")
if(NOT _signvote_cache)
  set(_signvote_cache "$ENV{HOME}/.cache")
endif()
# Its version has one home: scripts/lib/libtorch.sh, which fetches it.
get_filename_component(_libtorch_script "${CMAKE_CURRENT_LIST_DIR}/../scripts/lib/libtorch.sh" ABSOLUTE)
file(STRINGS "${_libtorch_script}" _libtorch_version REGEX "^readonly TORCH_VERSION=")
string(REGEX REPLACE "^readonly TORCH_VERSION=" "" _libtorch_version "${_libtorch_version}")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${_libtorch_script}")
set(_libtorch_hints "$ENV{LIBTORCH}" "${LIBTORCH}" "${_signvote_cache}/signvote/libtorch-${_libtorch_version}/torch")

# The user's own is used or refused, never passed over in silence; and it wins over what an earlier run has cached.
foreach(_own "$ENV{LIBTORCH}" "${LIBTORCH}")
  if(_own)
    if(NOT EXISTS "${_own}/include/torch/csrc/api/include/torch/torch.h")
      message(FATAL_ERROR "LIBTORCH=${_own} is no LibTorch: name the folder that holds include/ and lib/, or unset it")
    endif()
    if(LibTorch_ROOT AND NOT LibTorch_ROOT STREQUAL _own)
      unset(LibTorch_ROOT CACHE)
      unset(LibTorch_CPU_LIBRARY CACHE)
      unset(LibTorch_C10_LIBRARY CACHE)
    endif()
    break()
  endif()
endforeach()

find_path(LibTorch_ROOT NAMES include/torch/csrc/api/include/torch/torch.h HINTS ${_libtorch_hints} NO_DEFAULT_PATH)
find_library(LibTorch_CPU_LIBRARY torch_cpu HINTS "${LibTorch_ROOT}/lib" NO_DEFAULT_PATH)
find_library(LibTorch_C10_LIBRARY c10 HINTS "${LibTorch_ROOT}/lib" NO_DEFAULT_PATH)
mark_as_advanced(LibTorch_ROOT LibTorch_CPU_LIBRARY LibTorch_C10_LIBRARY)

include(FindPackageHandleStandardArgs)
set(FPHSA_NAME_MISMATCHED ON)
find_package_handle_standard_args(LibTorch REQUIRED_VARS LibTorch_ROOT LibTorch_CPU_LIBRARY LibTorch_C10_LIBRARY)

if(LibTorch_FOUND AND NOT TARGET LibTorch::cpu)
  # The wheel keeps the CUDA runtime that libtorch_cpu.so names beside the torch folder.
  get_filename_component(_libtorch_parent "${LibTorch_ROOT}" DIRECTORY)
  set(_libtorch_cuda_runtime "${_libtorch_parent}/nvidia/cu13/lib")
  add_library(LibTorch::cpu INTERFACE IMPORTED)
  target_include_directories(LibTorch::cpu SYSTEM INTERFACE
    "${LibTorch_ROOT}/include" "${LibTorch_ROOT}/include/torch/csrc/api/include")
  # Its headers' assertions name their files: not by a path of the machine that built the program.
  target_compile_options(LibTorch::cpu INTERFACE "-fmacro-prefix-map=${LibTorch_ROOT}=libtorch")
  target_link_libraries(LibTorch::cpu INTERFACE "${LibTorch_CPU_LIBRARY}" "${LibTorch_C10_LIBRARY}")
  # No -rpath of our own: CMake writes the libraries' folder into programs of the build tree and replaces it at
  # installation, and LibTorch's libraries name the CUDA runtime's folder themselves.
  target_link_options(LibTorch::cpu INTERFACE
    "-Wl,-rpath-link,${LibTorch_ROOT}/lib" "-Wl,-rpath-link,${_libtorch_cuda_runtime}")
endif()
