package cni

import (
	"context"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"berth/internal/attach"
)

func bridgeCheck(args *skel.CmdArgs) error {
	c, err := loadBridge(args)
	if err != nil {
		return err
	}
	h, r, err := openCheck(args, &c.NetConf)
	if err != nil {
		return err
	}
	defer h.Close()
	if r == nil {
		return said("Required prevResult missing")
	}
	br, err := h.OnHost(c.Bridge)
	if err != nil {
		return said("Interface name %s not found: %w", c.Bridge, err)
	}
	told := slices.IndexFunc(r.Interfaces, func(i *current.Interface) bool { return i.Name == c.Bridge && i.Sandbox == "" })
	switch {
	case br.Kind != "bridge":
		return said("Interface %s does not have link type of bridge", c.Bridge)
	case told < 0:
		return said("Interface name missing ")
	case r.Interfaces[told].Mac != "" && r.Interfaces[told].Mac != br.MAC.String():
		return said("Bridge interface %s Mac doesn't match: %s", c.Bridge, r.Interfaces[told].Mac)
	case br.Promisc() != c.Promisc:
		return said("Bridge interface %s configured Promisc Mode %v doesn't match current state: %v ", c.Bridge, c.Promisc, br.Promisc())
	}
	end, err := checkInside(h, args, r)
	if err != nil {
		return err
	}
	l, err := h.OnHost(end)
	if err != nil || !l.PortOf(br) || !slices.ContainsFunc(r.Interfaces, func(i *current.Interface) bool {
		return i.Name == end && i.Sandbox == "" && (i.Mac == "" || i.Mac == l.MAC.String())
	}) {
		return said("CNI veth created for bridge %s was not found", c.Bridge)
	}
	return nil
}

// openCheck opens the namespace of a CHECK once who gave the addresses has
// nothing to say, with the result of ADD, if there is one.
func openCheck(args *skel.CmdArgs, conf *types.NetConf) (h *attach.Host, r *current.Result, err error) {
	if h, err = openNS(args.Netns); err != nil {
		return nil, nil, err
	}
	if err = newAddresser(args, conf).do(context.Background(), "CHECK"); err == nil {
		r, err = previousOf(conf)
	}
	if err != nil {
		h.Close()
		return nil, nil, err
	}
	return h, r, nil
}

// checkInside compares what is inside with the result of ADD, and returns the
// name of the other end.
func checkInside(h *attach.Host, args *skel.CmdArgs, r *current.Result) (end string, err error) {
	told := slices.IndexFunc(r.Interfaces, func(i *current.Interface) bool { return i.Name == args.IfName && i.Sandbox == args.Netns })
	if told < 0 {
		return "", said("Sandbox in prevResult doesn't match configured netns: %s", args.Netns)
	}
	l, err := h.Inside(args.IfName)
	if err != nil {
		return "", said("Interface name %s not found: %w", args.IfName, err)
	}
	if l.Kind != "veth" {
		return "", said("Error: Container interface %s not of type veth", args.IfName)
	}
	if mac := r.Interfaces[told].Mac; mac != "" && mac != l.MAC.String() {
		return "", said("Interface %s Mac %s doesn't match container Mac: %s", args.IfName, mac, l.MAC)
	}
	for _, ip := range r.IPs {
		a, err := prefixOf(ip.Address)
		if err != nil || ip.Interface == nil || *ip.Interface != told {
			continue
		}
		if !slices.Contains(l.Addrs, a) {
			return "", said("Failed to match addr %s on interface %s", a, args.IfName)
		}
	}
	have, err := h.RoutesInside()
	if err != nil {
		return "", err
	}
	for _, route := range r.Routes {
		dst, err := prefixOf(route.Dst)
		if err != nil || route.Table != nil {
			continue
		}
		gw, by := netip.AddrFromSlice(route.GW)
		if ways := have[dst.Masked()]; len(ways) == 0 || by && !slices.Contains(ways, gw.Unmap()) {
			return "", said("Expected Route %s not found in routing table", dst)
		}
	}
	return h.HostEnd(args.IfName)
}
