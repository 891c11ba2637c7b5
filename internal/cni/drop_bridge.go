package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"berth"
	"berth/internal/attach"
)

const vlans = "VLANs of a bridge are not in every kernel; name a bridge of that VLAN as bridge"

var bridgeKeys = map[string]map[string]key{
	"": {
		"bridge":                    {verdict: same, why: "default `cni0`"},
		"isGateway":                 {verdict: same},
		"isDefaultGateway":          {verdict: same},
		"forceAddress":              {verdict: same},
		"ipMasq":                    {verdict: differs, why: "by nftables, in table `inet berth`; it needs the subnet's address on the bridge"},
		"ipMasqBackend":             {verdict: differs, why: "nftables, whichever is named"},
		"mtu":                       {verdict: same},
		"hairpinMode":               {verdict: same},
		"promiscMode":               {verdict: same},
		"disableContainerInterface": {verdict: same},
		"portIsolation":             {verdict: same},
		"ipam":                      {verdict: same, why: "`host-local` is in this program; any other is executed from CNI_PATH"},
		"dns":                       {verdict: same},
		"vlan":                      no(vlans),
		"vlanTrunk":                 no(vlans),
		"preserveDefaultVlan":       {verdict: same, why: "it is about `vlan`"},
		"macspoofchk":               no("who speaks as a neighbour inside one bridge is not looked at"),
		"enabledad":                 no("addresses are unique by the files of ipam; the kernel is not made to try"),
	},
	"runtimeConfig": {"mac": {verdict: same, why: "counts more than `args.cni.mac`, and that more than MAC in CNI_ARGS"}},
	"args":          {"cni": {verdict: same, why: "`mac`"}},
}

type bridgeConf struct {
	types.NetConf
	Bridge           string `json:"bridge"`
	IsGateway        bool   `json:"isGateway"`
	IsDefaultGateway bool   `json:"isDefaultGateway"`
	ForceAddress     bool   `json:"forceAddress"`
	IPMasq           bool   `json:"ipMasq"`
	MTU              int    `json:"mtu"`
	Hairpin          bool   `json:"hairpinMode"`
	Promisc          bool   `json:"promiscMode"`
	NoInterface      bool   `json:"disableContainerInterface"`
	Isolation        bool   `json:"portIsolation"`
	RuntimeConfig    struct {
		MAC string `json:"mac"`
	} `json:"runtimeConfig"`
	Args struct {
		CNI struct {
			MAC string `json:"mac"`
		} `json:"cni"`
	} `json:"args"`

	mac berth.MAC
}

type macArgs struct {
	types.CommonArgs
	MAC types.UnmarshallableString `json:"mac,omitempty"`
}

// macOf is the address that an attachment is to have: the last that says one.
func macOf(args string, more ...string) (string, error) {
	var env macArgs
	if args != "" {
		if err := types.LoadArgs(args, &env); err != nil {
			return "", err
		}
	}
	mac := string(env.MAC)
	for _, m := range more {
		if m != "" {
			mac = m
		}
	}
	return mac, nil
}

func loadBridge(args *skel.CmdArgs) (*bridgeConf, error) {
	c := &bridgeConf{Bridge: "cni0"}
	if err := json.Unmarshal(args.StdinData, c); err != nil {
		return nil, fmt.Errorf("failed to load netconf: %w", err)
	}
	mac, err := macOf(args.Args, c.Args.CNI.MAC, c.RuntimeConfig.MAC)
	if err == nil {
		c.mac, err = parseMAC(mac)
	}
	c.IsGateway = c.IsGateway || c.IsDefaultGateway
	return c, err
}

func bridgeAdd(args *skel.CmdArgs) error {
	ctx := context.Background()
	c, err := loadBridge(args)
	if err != nil {
		return err
	}
	from := newAddresser(args, &c.NetConf)
	if !from.none() && c.NoInterface {
		return errors.New("cannot use IPAM when DisableContainerInterface flag is set")
	}
	if c.Hairpin && c.Promisc {
		return errors.New("cannot set hairpin mode and promiscuous mode at the same time")
	}
	h, err := openNS(args.Netns)
	if err != nil {
		return err
	}
	defer h.Close()
	if _, err := h.Bridge(ctx, c.Bridge, c.MTU, c.Promisc); err != nil {
		return fmt.Errorf("failed to create bridge %q: %w", c.Bridge, err)
	}
	return addWith(ctx, args, &c.NetConf, from, h, c.attach)
}

// addWith takes addresses, lets a plugin attach with them, and answers. If it
// cannot, they are given back.
func addWith(ctx context.Context, args *skel.CmdArgs, conf *types.NetConf, from addresser, h *attach.Host,
	plug func(context.Context, *skel.CmdArgs, *attach.Host, *current.Result) error,
) (err error) {
	if _, err := h.Inside(args.IfName); err == nil { // before anything is taken for it
		return fmt.Errorf("container veth name (%q) %w", args.IfName, berth.ErrExists)
	}
	r := &current.Result{}
	if !from.none() {
		if r, err = from.add(ctx); err != nil {
			return err
		}
	}
	if err := plug(ctx, args, h, r); err != nil {
		return errors.Join(err, from.do(ctx, "DEL"))
	}
	if !conf.DNS.IsEmpty() {
		r.DNS = conf.DNS
	}
	return printResult(r, conf.CNIVersion)
}

// attach connects the namespace and completes the result.
func (c *bridgeConf) attach(ctx context.Context, args *skel.CmdArgs, h *attach.Host, r *current.Result) (err error) {
	gateways, err := c.gateways(r)
	if err != nil {
		return err
	}
	p, err := pairOf(args.IfName, r)
	if err != nil {
		return err
	}
	p.MTU, p.MAC, p.Bridge, p.Hairpin, p.Isolated, p.Down = c.MTU, c.mac, c.Bridge, c.Hairpin, c.Isolation, c.NoInterface
	end, err := h.Attach(ctx, p)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Remove(ctx, args.IfName))
		}
	}()
	if err := h.PutGateways(ctx, c.Bridge, gateways, c.ForceAddress); err != nil {
		return fmt.Errorf("failed to set bridge addr: %w", err)
	}
	if err := h.Forward(ctx, gateways); err != nil {
		return fmt.Errorf("failed to enable forwarding: %w", err)
	}
	if err := links(h, args, r, c.Bridge, end); err != nil || !c.IPMasq || len(r.IPs) == 0 {
		return err
	}
	return masquerade(ctx, "bridge", c.Name, args, h, r)
}

// masquerade lets what leaves from the attachment have the host's address. An
// error of a subnet of which the host has no part is none: nothing leaves by it.
func masquerade(ctx context.Context, part, name string, args *skel.CmdArgs, h *attach.Host, r *current.Result) error {
	w, err := openWard(ctx, part, name, args, h)
	if err != nil {
		return err
	}
	_, _, err = w.adopt(ctx, r, true)
	if errors.Is(err, errNoPart) {
		err = nil
	}
	return errors.Join(err, w.e.Close())
}

// gateways completes a result: who the gateway is, the default route, and which
// interface has the addresses. It returns the bridge's addresses.
func (c *bridgeConf) gateways(r *current.Result) (all []netip.Prefix, err error) {
	for _, ip := range r.IPs {
		ip.Interface = current.Int(2)
		if ip.Gateway == nil && c.IsGateway {
			if ip.Gateway, err = firstOf(ip.Address); err != nil {
				return nil, err
			}
		}
		if !c.IsGateway {
			continue
		}
		gw, ok := netip.AddrFromSlice(ip.Gateway)
		p, err := prefixOf(ip.Address)
		if err != nil || !ok {
			return nil, fmt.Errorf("gateway %s of %s: not an address", ip.Gateway, ip.Address.String())
		}
		gw = gw.Unmap()
		if own := netip.PrefixFrom(gw, p.Bits()); !slices.Contains(all, own) {
			all = append(all, own)
		}
		anywhere := ipNet(familyAny(p.Addr()))
		if c.IsDefaultGateway && !slices.ContainsFunc(r.Routes, func(o *types.Route) bool {
			return o.GW != nil && o.Dst.String() == anywhere.String()
		}) {
			r.Routes = append(r.Routes, &types.Route{Dst: anywhere, GW: ip.Gateway})
		}
	}
	return all, nil
}

// pairOf is the inside of an attachment, by the answer of who gives addresses.
func pairOf(ifname string, r *current.Result) (attach.Pair, error) {
	p := attach.Pair{Name: ifname}
	gateway := map[bool]netip.Addr{}
	conf := func(family, dev, name, value string) {
		p.Settings = append(p.Settings, attach.Setting{Path: "net/" + family + "/conf/" + dev + "/" + name, Value: value})
	}
	for _, ip := range r.IPs {
		a, err := prefixOf(ip.Address)
		if err != nil {
			return p, err
		}
		if gw, ok := netip.AddrFromSlice(ip.Gateway); ok && !gateway[a.Addr().Is4()].IsValid() {
			gateway[a.Addr().Is4()] = gw.Unmap()
		}
		p.Addrs = append(p.Addrs, a)
	}
	if slices.ContainsFunc(p.Addrs, func(a netip.Prefix) bool { return a.Addr().Is6() }) {
		for _, dev := range []string{"lo", ifname} {
			conf("ipv6", dev, "disable_ipv6", "0")
		}
		conf("ipv6", ifname, "accept_dad", "0")
		conf("ipv6", ifname, "keep_addr_on_down", "1")
	}
	if len(p.Addrs) > 0 {
		conf("ipv4", ifname, "arp_notify", "1")
	}
	for _, route := range r.Routes {
		one, err := routeOf(route, gateway)
		if err != nil {
			return p, err
		}
		p.Routes = append(p.Routes, one)
	}
	return p, nil
}

// routeOf is a route; one without a gateway is by that of its family.
func routeOf(r *types.Route, gateway map[bool]netip.Addr) (one attach.Route, err error) {
	if r.MTU != 0 || r.AdvMSS != 0 || r.Scope != nil {
		return one, &Error{Code: codeUnsupported, Msg: "unsupported key routes: " + r.Dst.String(),
			Details: "mtu, advmss and scope of a route are not set: the interface has its MTU"}
	}
	if one.Dst, err = prefixOf(net.IPNet{IP: r.Dst.IP, Mask: r.Dst.Mask}); err != nil {
		return one, err
	}
	one.Gateway = gateway[one.Dst.Addr().Is4()]
	if gw, ok := netip.AddrFromSlice(r.GW); ok {
		one.Gateway = gw.Unmap()
	}
	one.Metric = r.Priority
	if r.Table != nil {
		one.Table = *r.Table
	}
	return one, nil
}

// links puts the links into a result, as the kernel has them: those of the host
// in their order, then the one inside.
func links(h *attach.Host, args *skel.CmdArgs, r *current.Result, onHost ...string) error {
	r.CNIVersion = current.ImplementedSpecVersion
	for _, name := range onHost {
		l, err := h.OnHost(name)
		if err != nil {
			return err
		}
		r.Interfaces = append(r.Interfaces, &current.Interface{Name: l.Name, Mac: l.MAC.String()})
	}
	l, err := h.Inside(args.IfName)
	if err != nil {
		return err
	}
	r.Interfaces = append(r.Interfaces, &current.Interface{Name: l.Name, Mac: l.MAC.String(), Sandbox: args.Netns})
	return nil
}

func bridgeDel(args *skel.CmdArgs) error {
	ctx := context.Background()
	c, err := loadBridge(args)
	if err != nil {
		return err
	}
	return detach(ctx, args, &c.NetConf, "bridge", c.IPMasq)
}

// detach takes an attachment away, and gives its addresses back.
func detach(ctx context.Context, args *skel.CmdArgs, conf *types.NetConf, part string, masqueraded bool) error {
	if masqueraded {
		err := inWard(ctx, part, conf.Name, args, func(w *ward) error { return w.release(ctx, true, nil) })
		if err != nil {
			return err
		}
	}
	h, err := openGoing(args.Netns)
	if err != nil {
		return err
	}
	if h != nil {
		defer h.Close()
		if err := h.Remove(ctx, args.IfName); err != nil {
			return fmt.Errorf("failed to delete %q: %w", args.IfName, err)
		}
	}
	return newAddresser(args, conf).do(ctx, "DEL")
}

// attachedGC is GC of the plugins that connect.
func attachedGC(args *skel.CmdArgs) error {
	var conf types.NetConf
	if err := json.Unmarshal(args.StdinData, &conf); err != nil {
		return fmt.Errorf("failed to load netconf: %w", err)
	}
	ctx := context.Background()
	err := inWard(ctx, conf.Type, conf.Name, args, func(w *ward) error { return w.collect(ctx, conf.ValidAttachments) })
	return errors.Join(err, newAddresser(args, &conf).do(ctx, "GC"))
}
