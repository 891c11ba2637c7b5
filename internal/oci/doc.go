// Package oci runs containers by what the distribution has: an OCI runtime
// (crun or runc) and conmon, which watches one container, keeps its terminal
// and writes its log. It knows no networks and keeps no records.
package oci
