# What would stop Sysprep, as one line of JSON. It changes nothing. Probes that fail are named in "failed".
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
[Console]::OutputEncoding = New-Object Text.UTF8Encoding $false
$failed = New-Object Collections.ArrayList
function Probe($name, $script) {
  try { , (& $script) } catch { [void]$failed.Add($name); , $null }
}
$nt = 'HKLM:\SOFTWARE\Microsoft\Windows NT\CurrentVersion'
$current = 'HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion'
$manager = 'HKLM:\SYSTEM\CurrentControlSet\Control\Session Manager'
$facts = [ordered]@{
  windows = $env:SystemRoot
  product = Probe 'product' { [string](Get-ItemProperty $nt).ProductName }
  build = Probe 'build' { [int](Get-ItemProperty $nt).CurrentBuildNumber }
  state = Probe 'state' { [string](Get-ItemProperty "$current\Setup\State").ImageState }
  features = Probe 'features' {
    if (Get-Command Get-WindowsFeature -ErrorAction SilentlyContinue) {
      @(Get-WindowsFeature | Where-Object { $_.Installed } | ForEach-Object { $_.Name })
    } else { @() }
  }
  apps = Probe 'apps' {
    if (Get-Command Get-AppxProvisionedPackage -ErrorAction SilentlyContinue) {
      $provisioned = @(Get-AppxProvisionedPackage -Online | ForEach-Object { $_.DisplayName })
      @(Get-AppxPackage -AllUsers | Where-Object {
        -not $_.IsFramework -and -not $_.NonRemovable -and "$($_.SignatureKind)" -ne 'System' -and
        $provisioned -notcontains $_.Name -and
        @($_.PackageUserInformation | Where-Object { "$($_.InstallState)" -match 'Installed' }).Count
      } | ForEach-Object { $_.PackageFullName })
    } else { @() }
  }
  pending = Probe 'pending' {
    $found = @()
    if (Test-Path "$current\Component Based Servicing\RebootPending") { $found += 'servicing' }
    if (Test-Path "$current\WindowsUpdate\Auto Update\RebootRequired") { $found += 'update' }
    if (@((Get-ItemProperty $manager).PendingFileRenameOperations | Where-Object { $_ }).Count) { $found += 'renames' }
    $found
  }
  bitlocker = Probe 'bitlocker' {
    if (Test-Path "$env:SystemRoot\System32\manage-bde.exe") {
      @(Get-CimInstance -Namespace root\CIMV2\Security\MicrosoftVolumeEncryption -ClassName Win32_EncryptableVolume |
        Where-Object { $_.ConversionStatus -ne 0 } | ForEach-Object { $_.DriveLetter })
    } else { @() }
  }
  rearms = Probe 'rearms' { [int](Get-CimInstance SoftwareLicensingService).RemainingWindowsReArmCount }
  skiprearm = Probe 'skiprearm' { [int](Get-ItemProperty "$nt\SoftwareProtectionPlatform").SkipRearm }
  role = Probe 'role' { [int](Get-CimInstance Win32_ComputerSystem).DomainRole }
  upgraded = Probe 'upgraded' { @(Get-ChildItem HKLM:\SYSTEM\Setup | Where-Object { $_.PSChildName -like 'Source OS*' }).Count }
  cdrom = Probe 'cdrom' { [int](Get-ItemProperty HKLM:\SYSTEM\CurrentControlSet\Services\cdrom).Start }
  answers = Probe 'answers' {
    @("$env:SystemRoot\Panther", "$env:SystemRoot\Panther\Unattend", "$env:SystemRoot\System32\Sysprep" |
      ForEach-Object { Get-ChildItem $_ -Filter *.xml -ErrorAction SilentlyContinue } |
      Where-Object { $_.Name -match 'unattend' } | ForEach-Object { $_.FullName })
  }
  running = Probe 'running' { @(Get-Process sysprep -ErrorAction SilentlyContinue).Count }
}
$facts.failed = @($failed)
$facts | ConvertTo-Json -Compress -Depth 3
