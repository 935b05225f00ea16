# What differs between the packages; CPack reads this once per generator.
if(CPACK_GENERATOR STREQUAL "DEB")
  # Under /usr, with configuration in /etc, which is outside the prefix.
  set(CPACK_SET_DESTDIR ON)
  set(CPACK_INSTALL_PREFIX "/usr")
endif()
