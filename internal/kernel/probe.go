package kernel

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// A Feature is something of the kernel that Berth uses.
type Feature struct {
	Name  string
	Have  bool
	Costs string // what is lost without it
}

// Probe looks what of the kernel is there. It changes nothing.
func (k *Kernel) Probe() ([]Feature, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, err := k.firewall()
	var nftables bool
	if err == nil {
		_, err = c.Generation()
		nftables = err == nil
	}
	if err != nil && errors.Is(err, os.ErrPermission) {
		return nil, err
	}
	brnf := func(file string) bool {
		v, err := k.host.sysctl("net/bridge/" + file)
		return err == nil && v == "1"
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return nil, err
	}
	_, err = k.host.sysctl("net/ipv6/conf/all/disable_ipv6")
	ipv6 := err == nil
	_, err = k.host.sysctl("net/netfilter/nf_conntrack_max")
	conntrack := err == nil
	return []Feature{
		{"nf_tables", nftables, "everything: no network can be made"},
		{"IPv6", ipv6, "IPv6 subnets and ports"},
		{"conntrack", conntrack, "NAT and published ports (the module is loaded with the first network)"},
		{"SCTP sockets", sctp(), "the check that no process of the host listens at an SCTP port"},
		{"bridged IPv4 passes the firewall only once (br_netfilter off)", !brnf("bridge-nf-call-iptables"), "neighbours of one network pass the forward chains of other tools too: 'berth check' tells which drop them"},
		{"[::1] leads to published ports (br_netfilter off)", ipv6 && !brnf("bridge-nf-call-ip6tables"), "a published port does not answer at [::1]; at the host's other IPv6 addresses it does"},
		{"one look-up for a replaced port", atLeast(string(release), 6, 18), "during 'publish --replace' a look-up may for an instant find neither the old nor the new target"},
	}, nil
}

func sctp() bool {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return false
	}
	unix.Close(s)
	return true
}

// atLeast reports whether a release "6.18.4-…" is of a version or later.
func atLeast(release string, major, minor int) bool {
	var have [2]int
	for i, f := range strings.SplitN(release, ".", 3) {
		if i > 1 {
			break
		}
		for _, r := range f {
			if r < '0' || r > '9' {
				break
			}
			have[i] = have[i]*10 + int(r-'0')
		}
	}
	return have[0] > major || have[0] == major && have[1] >= minor
}
