package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"berth/internal/attach"
)

var ptpKeys = map[string]map[string]key{"": {
	"ipMasq":        {verdict: differs, why: "by nftables, in table `inet berth`"},
	"ipMasqBackend": {verdict: differs, why: "nftables, whichever is named"},
	"mtu":           {verdict: same},
	"ipam":          {verdict: same, why: "`host-local` is in this program; any other is executed from CNI_PATH"},
	"dns":           {verdict: same},
}}

type ptpConf struct {
	types.NetConf
	IPMasq bool `json:"ipMasq"`
	MTU    int  `json:"mtu"`
}

func loadPTP(args *skel.CmdArgs) (*ptpConf, error) {
	c := &ptpConf{}
	if err := json.Unmarshal(args.StdinData, c); err != nil {
		return nil, fmt.Errorf("failed to load netconf: %w", err)
	}
	return c, nil
}

func ptpAdd(args *skel.CmdArgs) error {
	ctx := context.Background()
	c, err := loadPTP(args)
	if err != nil {
		return err
	}
	from := newAddresser(args, &c.NetConf)
	if from.none() {
		return fail(codeConfig, "ipam.type: a pair without addresses leads nowhere")
	}
	h, err := openNS(args.Netns)
	if err != nil {
		return err
	}
	defer h.Close()
	return addWith(ctx, args, &c.NetConf, from, h, c.attach)
}

// attach connects the namespace: all that leaves goes to the gateway, which is
// the host's end, also what is for the same subnet.
func (c *ptpConf) attach(ctx context.Context, args *skel.CmdArgs, h *attach.Host, r *current.Result) error {
	p, err := pairOf(args.IfName, r)
	if err != nil {
		return err
	}
	var first []attach.Route
	for i, ip := range r.IPs {
		ip.Interface = current.Int(1)
		gw, ok := netip.AddrFromSlice(ip.Gateway)
		if !ok {
			return fmt.Errorf("%s has no gateway: a pair needs one", ip.Address.String())
		}
		gw = gw.Unmap()
		a := p.Addrs[i]
		own := netip.PrefixFrom(gw, gw.BitLen())
		first = append(first, attach.Route{Dst: own, Src: a.Addr()}, attach.Route{Dst: a.Masked(), Gateway: gw, Src: a.Addr()})
		p.HostAddrs = append(p.HostAddrs, own)
		p.HostRoutes = append(p.HostRoutes, netip.PrefixFrom(a.Addr(), a.Addr().BitLen()))
	}
	p.Routes = append(first, p.Routes...)
	p.MTU, p.NoSubnet = c.MTU, true
	if err := h.Forward(ctx, p.Addrs); err != nil {
		return said("Could not enable IP forwarding: %w", err)
	}
	end, err := h.Attach(ctx, p)
	if err != nil {
		return err
	}
	err = links(h, args, r, end)
	if err == nil && c.IPMasq {
		err = masquerade(ctx, "ptp", c.Name, args, h, r)
	}
	if err != nil {
		return errors.Join(err, h.Remove(ctx, args.IfName))
	}
	return nil
}

func ptpDel(args *skel.CmdArgs) error {
	c, err := loadPTP(args)
	if err != nil {
		return err
	}
	return detach(context.Background(), args, &c.NetConf, "ptp", c.IPMasq)
}

func ptpCheck(args *skel.CmdArgs) error {
	c, err := loadPTP(args)
	if err != nil {
		return err
	}
	h, r, err := openCheck(args, &c.NetConf)
	if err != nil {
		return err
	}
	defer h.Close()
	if r == nil {
		return errors.New("ptp: Required prevResult missing")
	}
	_, err = checkInside(h, args, r)
	return err
}
