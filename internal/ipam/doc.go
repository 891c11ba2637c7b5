// Package ipam chooses subnets and addresses, given what is taken. It is pure:
// it reads no host, keeps no state and draws no random numbers, so the same
// question always has the same answer.
//
// What counts as taken (networks of the store, routes and links of the host)
// is the caller's to say.
package ipam
