# What is installed: library, headers, tools, the licence, and how other projects find them, by
# find_package and pkg-config. `cpack` makes a Debian package of it.

include(CMakePackageConfigHelpers)
set(config_folder ${CMAKE_INSTALL_LIBDIR}/cmake/cmt_runtime)
configure_package_config_file(cmake/cmt_runtimeConfig.cmake.in cmt_runtimeConfig.cmake
                              INSTALL_DESTINATION ${config_folder})
write_basic_package_version_file(cmt_runtimeConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(DIRECTORY include/cmt "${CMAKE_CURRENT_BINARY_DIR}/include/cmt"
        DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS cmt_runtime EXPORT cmt_runtimeTargets)
install(EXPORT cmt_runtimeTargets NAMESPACE cmt:: DESTINATION ${config_folder})
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/cmt_runtimeConfig.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/cmt_runtimeConfigVersion.cmake
        DESTINATION ${config_folder})
# nlohmann's JSON library is compiled in, whose terms are these.
set(notice "\nIt contains JSON for Modern C++, under the same terms: \
Copyright (c) 2013-2025 Niels Lohmann <https://nlohmann.me>.\n")
file(READ ../../LICENSE licence)
file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/copyright" "${licence}${notice}")
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/copyright"
        DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/cmt-runtime)

# A shared library brings what it links; a static one leaves that to whoever links it.
set(private_libraries "")
if(NOT BUILD_SHARED_LIBS)
  set(private_libraries "-lcrypto -ljpeg -lpng16 -pthread")
  set(runtimes "${CMT_ONNXRUNTIME_LIBRARY}" "${CMT_TENSORRT_LIBRARY}" "${CMT_CUDA_LIBRARY}")
  list(FILTER runtimes EXCLUDE REGEX "NOTFOUND$|^$")
  # Those of wheels and releases lie where no loader looks.
  foreach(library ${runtimes})
    get_filename_component(folder "${library}" DIRECTORY)
    string(APPEND private_libraries " ${library} -Wl,-rpath,${folder}")
  endforeach()
  if(OpenVINO_FOUND)
    string(APPEND private_libraries " $<TARGET_FILE:openvino::runtime>"
           " -Wl,-rpath,$<TARGET_FILE_DIR:openvino::runtime>")
  endif()
endif()
# The folder that it is installed into is only known then.
file(RELATIVE_PATH up "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
configure_file(cmake/cmt_runtime.pc.in cmt_runtime.pc.part @ONLY)
file(GENERATE OUTPUT cmt_runtime.pc INPUT "${CMAKE_CURRENT_BINARY_DIR}/cmt_runtime.pc.part")
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/cmt_runtime.pc"
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME cmt-runtime)
if(NOT CPACK_PACKAGE_CONTACT)
  set(CPACK_PACKAGE_CONTACT "whoever built it <root@localhost>")
endif()
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "Runs bundles of cmt-export: C++ and C library, tools")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
# Of Debian's own packages. The inference runtimes stay where they were at the build.
set(CPACK_DEBIAN_PACKAGE_DEPENDS "libjpeg-dev, libpng-dev, libssl-dev")
include(CPack)
