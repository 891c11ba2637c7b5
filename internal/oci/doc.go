// Package oci runs containers by what the distribution has: an OCI runtime
// (crun or runc) and conmon, which watches one container, keeps its terminal
// and writes its log. It knows no networks and keeps no records.
//
// [Spec] turns a container and what was prepared for it into the configuration
// of the runtime, with Docker's meaning of every wish. It does no I/O: same
// input, same output. [ResolveUser], [Sources], [Devices] and [Capabilities]
// look up what it has to be told.
package oci
