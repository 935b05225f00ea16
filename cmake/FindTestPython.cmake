# Finds the Python environment that scripts/setup makes of scripts/lib/requirements.txt, for tests that need more than the
# standard library. The environment bears the hash of that file, so that one of other versions is never taken for it.
#
# Defines TestPython_FOUND and TestPython_EXECUTABLE.
set(_signvote_cache "$ENV{XDG_CACHE_HOME}")
if(NOT _signvote_cache)
  set(_signvote_cache "$ENV{HOME}/.cache")
endif()
set(_requirements "${PROJECT_SOURCE_DIR}/scripts/lib/requirements.txt")
# Looked at again whenever the file changes, and whenever CMake runs: no result is kept.
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${_requirements}")
file(SHA256 "${_requirements}" _hash)
string(SUBSTRING "${_hash}" 0 12 _hash)
unset(TestPython_EXECUTABLE)
if(EXISTS "${_signvote_cache}/signvote/python-${_hash}/bin/python3")
  set(TestPython_EXECUTABLE "${_signvote_cache}/signvote/python-${_hash}/bin/python3")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TestPython REQUIRED_VARS TestPython_EXECUTABLE)
