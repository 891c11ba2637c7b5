package cni

import (
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
)

// inVersion is a result as a version of the specification has it.
func inVersion(r types.Result, version string) (types.Result, error) {
	if version == "1.0.0" { // which has no MTU; the conversion leaves it
		if full, ok := r.(*current.Result); ok {
			for _, i := range full.Interfaces {
				i.Mtu = 0
			}
		}
	}
	out, err := r.GetAsVersion(version)
	if err != nil {
		return nil, fail(codeVersion, "result in version %s: %v", version, err)
	}
	return out, nil
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
